/**
 * `/v1/models`: the model that is served.
 *
 * @module
 */
import { unknownModel } from "./parameters.ts";
import type { Service } from "./service.ts";

/** Lists the model, under each of its names. */
export function listModels(service: Service): Response {
  return Response.json({
    object: "list",
    data: service.names.map((id) => describe(id, service)),
  });
}

/** @throws {ApiError} 404 for another model. */
export function findModel(id: string, service: Service): Response {
  const { names } = service;
  if (!names.includes(id)) throw unknownModel(id, names);
  return Response.json(describe(id, service));
}

function describe(id: string, { created, qwen, names: [root] }: Service) {
  return {
    id,
    object: "model",
    created,
    owned_by: "local",
    root,
    max_model_len: qwen.context,
  };
}
