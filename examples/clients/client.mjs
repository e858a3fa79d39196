// Ask a served model from JavaScript: node client.mjs URL MODEL (needs Node 18 or later).
// A server that asks for credentials gets the key in FAIRLEAD_API_KEY. In a browser, take constants,
// and pages of the server's own origin: it answers, but no browser shows its answers to other pages.

const [url, model] = process.argv.slice(2);
const key = process.env.FAIRLEAD_API_KEY;

async function ask(path, options = {}) {
  const headers = { ...(key && { "X-API-Key": key }), ...options.headers };
  const signal = AbortSignal.timeout(10_000);
  const answer = await fetch(url + path, { signal, ...options, headers });
  if (!answer.ok) throw new Error(`${answer.status}: ${await answer.text()}`);
  return answer;
}

// JSON: numbers as text, easy to read.
async function inferJson(name, shape, values) {
  const inputs = [{ name, shape, datatype: "FP32", data: Array.from(values) }];
  const answer = await ask(`/v2/models/${model}/infer`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ inputs }),
  });
  return (await answer.json()).outputs;
}

const ARRAYS = { FP32: Float32Array, FP64: Float64Array, INT32: Int32Array, INT64: BigInt64Array };

// Binary: a JSON head, then the bytes of the tensors, little-endian and row-major.
async function inferBinary(name, shape, values) {
  const parameters = { binary_data_size: values.byteLength };
  const inputs = [{ name, shape, datatype: "FP32", parameters }];
  const head = new TextEncoder().encode(
    JSON.stringify({ inputs, parameters: { binary_data_output: true } }),
  );
  const answer = await ask(`/v2/models/${model}/infer`, {
    method: "POST",
    headers: {
      "Content-Type": "application/octet-stream",
      "Inference-Header-Content-Length": String(head.length),
    },
    body: new Blob([head, values]),
  });
  const body = await answer.arrayBuffer();
  let at = Number(answer.headers.get("Inference-Header-Content-Length"));
  const { outputs } = JSON.parse(new TextDecoder().decode(body.slice(0, at)));
  return outputs.map((output) => {
    const size = output.parameters.binary_data_size;
    const bytes = body.slice(at, (at += size)); // a copy, so that it is aligned
    const Kind = ARRAYS[output.datatype];
    return { ...output, data: Kind ? Array.from(new Kind(bytes)) : new Uint8Array(bytes) };
  });
}

const metadata = await (await ask(`/v2/models/${model}`)).json();
const { name, shape } = metadata.inputs[0];
const width = shape.slice(1).reduce((product, size) => product * size, 1);
const row = new Float32Array(width);
for (const infer of [inferJson, inferBinary]) {
  const outputs = await infer(name, [1, ...shape.slice(1)], row);
  const shown = outputs.map((output) => `${output.name} [${output.shape}] = ${output.data}`);
  console.log(`${infer.name}: ${shown.join("; ")}`);
}
