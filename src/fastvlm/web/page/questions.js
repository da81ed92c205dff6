// Ready questions of the page.

/** Example images, with their questions; the shipped model answers all of them. */
export const EXAMPLES = [
  ["letter.png", "What letter is this?"],
  ["red_star.png", "What shape is this?"],
  ["five_shapes.png", "How many shapes are there?"],
  ["word.png", "What does it say?"],
  ["objects.png", "What do you see?"],
  ["shapes.png", "What shape is orange?"],
];

const TEXT = { type: "string", maxLength: 40 };
const IMAGE_SCHEMA = {
  type: "object",
  properties: { shape: TEXT, color: TEXT, count: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["shape", "color", "count"],
  additionalProperties: false,
};

/** Name of the button, question, response_format. */
export const PRESETS = [
  ["Describe", "Describe the image."],
  ["Read the text", "What does the text say?"],
  ["Count", "How many objects are there?"],
  ["JSON", "Describe the image as JSON.", { type: "json_schema", json_schema: { name: "image", schema: IMAGE_SCHEMA } }],
];

/** What live mode asks while the question field is empty. */
export const LIVE_QUESTION = "What is this?";
