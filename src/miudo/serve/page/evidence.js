// "Save the evidence": what was seen, by which model, with which settings, as a JSON file.
// For: any view that has something to show for itself. Read next: main.js.

import { identity } from "./api.js";

export async function evidence(view, models, found) {
  const named = await Promise.all(models.map(identity));
  return {
    schema: 1,
    made_by: "miudo page",
    date: new Date().toISOString(),
    view,
    models: named.map((m) => ({
      name: m.model,
      sha256: m.sha256,
      tokenizer_sha256: m.tokenizer_sha256,
    })),
    ...found,
  };
}

export function download(name, value) {
  const link = document.createElement("a");
  const text = JSON.stringify(value, null, 1);
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
