// Runs models with node-llama-cpp, in Node: prints probabilities after each token, greedy
// tokens and the tokens of texts, as a line of JSON for each model.
//
//   node llama_cpp.mjs FOLDER '{"files": ["a.gguf"], "ids": [1], "count": 8, "texts": []}'
import { writeSync } from "node:fs";
import process from "node:process";

const [folder, job] = process.argv.slice(2);
const { files, ids, count, texts } = JSON.parse(job);
const { getLlama, LlamaLogLevel } = await import(
  `${folder}/node_modules/node-llama-cpp/dist/index.js`
);
const llama = await getLlama({
  gpu: false,
  build: "never",
  logLevel: LlamaLogLevel.error,
});

/** Writes all of a text, which a pipe may take in parts. */
function print(text) {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) {
    try {
      at += writeSync(1, bytes, at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

for (const file of files) {
  const model = await llama.loadModel({ modelPath: file });
  const context = await model.createContext({ contextSize: 256, threads: 2 });
  const sequence = context.getSequence();
  const evaluated = await sequence.controlledEvaluate(
    ids.map((id) => [id, { generateNext: { probabilities: true } }]),
  );
  const probabilities = evaluated.map(({ next }) => {
    const each = [];
    for (const [id, value] of next.probabilities) each[id] = value;
    return each;
  });
  await sequence.clearHistory();
  const greedy = [];
  for await (const id of sequence.evaluate(ids, { temperature: 0 })) {
    greedy.push(id);
    if (greedy.length === count) break;
  }
  const tokens = texts.map((text) => model.tokenize(text));
  print(`${JSON.stringify({ probabilities, greedy, tokens })}\n`);
  await context.dispose();
  await model.dispose();
}
process.exit(0);
