// Answers of transformers.js: node ask.mjs PACKAGE FOLDER DTYPE JSON, where JSON is [[[image, ...], question], ...].
// Prints a JSON list of {text, ids, prompt}.
const [pack, folder, dtype, asked] = process.argv.slice(2);
const { AutoModelForImageTextToText, AutoProcessor, RawImage, env } = await import(pack);
env.allowRemoteModels = false;

const processor = await AutoProcessor.from_pretrained(folder);
const options = dtype === "auto" ? {} : { dtype };
const model = await AutoModelForImageTextToText.from_pretrained(folder, options);

async function padded(image) {
  const side = Math.max(image.width, image.height);
  const [left, top] = [Math.floor((side - image.width) / 2), Math.floor((side - image.height) / 2)];
  return image.rgb().pad([left, side - image.width - left, top, side - image.height - top]);
}

const answers = [];
for (const [names, question] of JSON.parse(asked)) {
  const images = await Promise.all(names.map(async (name) => padded(await RawImage.read(name))));
  const items = [...images.map(() => ({ type: "image" })), { type: "text", text: question }];
  const prompt = processor.apply_chat_template([{ role: "user", content: items }], { add_generation_prompt: true });
  const inputs = await processor(images, prompt, { add_special_tokens: false });
  const output = await model.generate({ ...inputs, max_new_tokens: 32 });
  const start = inputs.input_ids.dims.at(-1);
  const reply = output.slice(null, [start, null]);
  const text = processor.batch_decode(reply, { skip_special_tokens: true })[0].trim();
  answers.push({ text, ids: Array.from(reply.data, Number), prompt: start });
}
console.log(JSON.stringify(answers));
