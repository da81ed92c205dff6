// Prepares images for the server: files, frames of a video; compares frames.

import { element } from "./dom.js";
import { megabytes } from "./words.js";

const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const LARGEST_BYTES = 4e6; // larger files are scaled down here: the model sees at most about 1024 px
const LARGEST_SIDE = 2048;
const FRAME_SIDE = 768;
const SIGHT = 32; // side in pixels of the gray images that are compared
const CHANGE = 6; // mean difference of gray values (0 to 255) of a changed frame; camera noise is about 2

// Files that become images on the server, if it accepts them.
export const MEDIA = { pdf: { noun: "PDF", types: "application/pdf" }, video: { noun: "video", types: "video/*" } };

/** An image to look at; of a PDF or video its kind. @param {string} uri @param {number} index */
export function preview(uri, index) {
  const kind = mediaKind(uri.slice(5, 40));
  if (!kind) return element("img", { src: uri, alt: `Image ${index + 1}` });
  return element("span", { className: "file" }, kind === "pdf" ? "PDF" : "Video");
}

/** Which of MEDIA a file or data URI is; null for an image. @param {string} type */
export function mediaKind(type) {
  if (type.startsWith("application/pdf")) return "pdf";
  return type.startsWith("video/") ? "video" : null;
}

/**
 * The data URI of an image file: as it is, or scaled down if it is larger than it needs to be or than the server takes.
 * @param {File} file
 * @param {?import("./api.js").Limits} limits
 * @returns {Promise<string>} throws an Error in words that follow "name: "
 */
export async function fromFile(file, limits) {
  const kind = file.type || "unknown kind";
  const media = mediaKind(file.type);
  if (media) return fromMedia(file, media, limits);
  if (!file.type.startsWith("image/")) throw new Error(`this is not an image (${kind}). Choose a PNG, JPEG or WebP file.`);
  if (file.size === 0) throw new Error("the file is empty.");
  const image = await decode(file);
  const largest = Math.min(LARGEST_BYTES, limits?.max_image_bytes ?? Infinity);
  const pixels = limits?.max_image_pixels ?? Infinity;
  const isSmall = file.size <= largest && image.width * image.height <= pixels;
  if (isSmall && SENT_AS_THEY_ARE.includes(file.type)) return read(file);
  const side = Math.min(LARGEST_SIDE, (Math.sqrt(pixels) * Math.max(image.width, image.height)) / Math.sqrt(image.width * image.height));
  const uri = draw(image, image.width, image.height, side);
  const bytes = 0.75 * uri.length;
  if (bytes <= largest) return uri;
  throw new Error(`the image has ${megabytes(bytes)}; the server takes ${megabytes(largest)}. Choose a smaller one.`);
}

function fromMedia(file, kind, limits) {
  const { noun } = MEDIA[kind];
  if (!limits?.accepts?.includes(kind)) throw new Error(`this server does not accept a ${noun} (start it with --accept ${kind}). Choose an image.`);
  if (file.size <= limits.max_image_bytes) return read(file);
  throw new Error(`the ${noun} has ${megabytes(file.size)}; the server takes ${megabytes(limits.max_image_bytes)}. Choose a smaller one.`);
}

function read(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

async function decode(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error("this browser cannot show it: it is damaged, or of a kind that the browser does not know. Save it as PNG or JPEG.");
  }
}

function draw(source, width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9);
}

export function frame(video) {
  return draw(video, video.videoWidth, video.videoHeight, FRAME_SIDE);
}

// SIGHT x SIGHT gray values of a frame.
export function glance(video) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIGHT;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(video, 0, 0, SIGHT, SIGHT);
  const pixels = context.getImageData(0, 0, SIGHT, SIGHT).data;
  return Float32Array.from({ length: SIGHT * SIGHT }, (_, i) => (pixels[4 * i] + pixels[4 * i + 1] + pixels[4 * i + 2]) / 3);
}

export function differ(before, now) {
  if (!before) return true;
  let sum = 0;
  for (let i = 0; i < now.length; i++) sum += Math.abs(now[i] - before[i]);
  return sum / now.length > CHANGE;
}
