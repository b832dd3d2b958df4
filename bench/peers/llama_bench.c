/*
 * Times llama.cpp through its C API, one line of JSON per workload, or quantises a file:
 *
 *   llama_bench MODEL.gguf LIBRARIES gpu|cpu RUNS WORKLOAD…
 *   llama_bench quantize FROM.gguf TO.gguf TYPE
 *
 *   pp512      prefill of 512 tokens, from an empty cache
 *   pp2048:1024  prefill of 2,048, at most 1,024 per graph (512 by default)
 *   tg@128     64 single tokens after a prompt of 128, one graph each
 *   tg@128x16  the same for 16 sequences together
 *
 * Discards a first run of each, then reports the median and extremes of RUNS runs.
 * Nothing is sampled: each graph ends with its logits on the host, as in llama-bench.
 * THREADS in the environment sets the number of CPU threads.
 */
#include "ggml-backend.h"
#include "llama.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum { DECODED = 64, DEFAULT_UBATCH = 512, MOST_RUNS = 100 };

struct workload {
  bool decode;
  int prompt, sequences, ubatch;
};

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what, const char *which) {
  fprintf(stderr, "error: Cannot %s: %s\n", what, which);
  exit(1);
}

static void only_errors(enum ggml_log_level level, const char *text, void *user) {
  (void)user;
  if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int threads(void) {
  const char *given = getenv("THREADS");
  return given && atoi(given) > 0 ? atoi(given) : (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* Types of files by name. */
static const struct { const char *name; enum llama_ftype type; } TYPES[] = {
  {"F16", LLAMA_FTYPE_MOSTLY_F16},       {"BF16", LLAMA_FTYPE_MOSTLY_BF16},
  {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},     {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},
  {"Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},     {"Q5_0", LLAMA_FTYPE_MOSTLY_Q5_0},
  {"Q5_1", LLAMA_FTYPE_MOSTLY_Q5_1},     {"Q2_K", LLAMA_FTYPE_MOSTLY_Q2_K},
  {"Q3_K_M", LLAMA_FTYPE_MOSTLY_Q3_K_M}, {"Q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S},
  {"Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M}, {"Q5_K_M", LLAMA_FTYPE_MOSTLY_Q5_K_M},
  {"Q6_K", LLAMA_FTYPE_MOSTLY_Q6_K},     {"IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL},
  {"IQ4_XS", LLAMA_FTYPE_MOSTLY_IQ4_XS},
};

static int quantize(const char *from, const char *to, const char *type) {
  struct llama_model_quantize_params params = llama_model_quantize_default_params();
  const size_t count = sizeof TYPES / sizeof *TYPES;
  size_t i = 0;
  while (i < count && strcasecmp(TYPES[i].name, type) != 0) i++;
  if (i == count) fail("quantise to this type, it is unknown", type);
  params.ftype = TYPES[i].type;
  params.nthread = threads();
  const double began = seconds();
  if (llama_model_quantize(from, to, &params) != 0) fail("quantise", from);
  printf("{\"type\":\"%s\",\"seconds\":%.1f,\"threads\":%d}\n", TYPES[i].name,
         seconds() - began, params.nthread);
  return 0;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static struct workload parse(const char *word) {
  struct workload w = {.sequences = 1, .ubatch = DEFAULT_UBATCH};
  w.decode = strncmp(word, "tg@", 3) == 0;
  const char *form = w.decode ? "tg@%dx%d" : "pp%d:%d";
  int *second = w.decode ? &w.sequences : &w.ubatch;
  if (sscanf(word, form, &w.prompt, second) < 1 || w.prompt < 1 || *second < 1)
    fail("read a workload, must be ppN[:UBATCH] or tg@N[xSEQUENCES]", word);
  return w;
}

/* One graph (or several of at most n_batch tokens) with `count` tokens per sequence. */
static void decode(struct llama_context *context, struct llama_batch *batch,
                   int vocab, int sequences, int first, int count) {
  static unsigned token;
  const int most = llama_n_batch(context) / sequences;
  for (int done = 0; done < count; done += most) {
    const int some = count - done < most ? count - done : most;
    batch->n_tokens = 0;
    for (int s = 0; s < sequences; s++)
      for (int i = 0; i < some; i++) {
        const int at = batch->n_tokens++;
        batch->token[at] = (token += 7919) % vocab;
        batch->pos[at] = first + done + i;
        batch->n_seq_id[at] = 1;
        batch->seq_id[at][0] = s;
        batch->logits[at] = done + i == count - 1;
      }
    if (llama_decode(context, *batch) != 0) fail("run a graph", "llama_decode");
  }
  llama_synchronize(context);
}

/* Tokens per second of each run, sorted. */
static void measure(struct llama_model *model, struct workload w, int runs,
                    double *rates) {
  const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  struct llama_context_params params = llama_context_default_params();
  params.n_ctx = w.sequences * (w.prompt + (w.decode ? DECODED : 0));
  params.n_batch = params.n_ctx < 2048 ? params.n_ctx : 2048;
  params.n_ubatch = w.ubatch < (int)params.n_batch ? w.ubatch : (int)params.n_batch;
  params.n_seq_max = w.sequences;
  params.n_threads = params.n_threads_batch = threads();
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  struct llama_context *context = llama_init_from_model(model, params);
  if (!context) fail("make a context", "llama_init_from_model");
  llama_memory_t memory = llama_get_memory(context);
  struct llama_batch batch = llama_batch_init(params.n_batch, 0, 1);
  if (w.decode) decode(context, &batch, vocab, w.sequences, 0, w.prompt);
  for (int run = -1; run < runs; run++) {
    const int from = w.decode ? w.prompt : 0;
    for (int s = 0; s < w.sequences; s++)
      llama_memory_seq_rm(memory, s, from, -1);
    const double began = seconds();
    if (w.decode)
      for (int i = 0; i < DECODED; i++)
        decode(context, &batch, vocab, w.sequences, w.prompt + i, 1);
    else
      decode(context, &batch, vocab, 1, 0, w.prompt);
    const double took = seconds() - began;
    const int tokens = w.decode ? DECODED * w.sequences : w.prompt;
    if (run >= 0) rates[run] = tokens / took;
  }
  qsort(rates, runs, sizeof *rates, by_value);
  llama_batch_free(batch);
  llama_free(context);
}

int main(int count, char **words) {
  llama_log_set(only_errors, NULL);
  if (count == 5 && strcmp(words[1], "quantize") == 0)
    return quantize(words[2], words[3], words[4]);
  if (count < 6)
    fail("start", "must be llama_bench MODEL LIBRARIES gpu|cpu RUNS WORKLOAD…");
  const bool gpu = strcmp(words[3], "gpu") == 0;
  const int runs = atoi(words[4]);
  if (runs < 1 || runs > MOST_RUNS) fail("use this number of runs, must be 1 to 100", words[4]);
  ggml_backend_load_all_from_path(words[2]);
  llama_backend_init();

  ggml_backend_dev_t device = ggml_backend_dev_by_type(
      gpu ? GGML_BACKEND_DEVICE_TYPE_GPU : GGML_BACKEND_DEVICE_TYPE_CPU);
  if (!device && gpu) device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_IGPU);
  if (!device) fail("find a device, llama.cpp has none of this kind", words[3]);
  ggml_backend_dev_t devices[] = {gpu ? device : NULL, NULL};
  struct llama_model_params params = llama_model_default_params();
  params.devices = devices;
  params.n_gpu_layers = gpu ? 999 : 0;
  const double began = seconds();
  struct llama_model *model = llama_model_load_from_file(words[1], params);
  if (!model) fail("load", words[1]);
  const double load = seconds() - began;

  for (int i = 5; i < count; i++) {
    double rates[MOST_RUNS];
    measure(model, parse(words[i]), runs, rates);
    printf("{\"workload\":\"%s\",\"tokensPerSecond\":%.1f,\"low\":%.1f,"
           "\"high\":%.1f,\"runs\":%d,\"loadSeconds\":%.2f,\"device\":\"%s\"}\n",
           words[i], rates[runs / 2], rates[0], rates[runs - 1], runs, load,
           ggml_backend_dev_description(device));
    fflush(stdout);
  }
  llama_model_free(model);
  return 0;
}
