// Prepares images for the server: files, frames of a video; compares frames.

const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const LARGEST_BYTES = 4e6; // larger files are scaled down here: the model sees at most about 1024 px
const LARGEST_SIDE = 2048;
const FRAME_SIDE = 768;
const SIGHT = 32; // side in pixels of the gray images that are compared
const CHANGE = 6; // mean difference of gray values (0 to 255) of a changed frame; camera noise is about 2

export async function fromFile(file) {
  if (!file.type.startsWith("image/")) throw new Error(`${file.name || "That"} is not an image.`);
  if (SENT_AS_THEY_ARE.includes(file.type) && file.size <= LARGEST_BYTES) return read(file);
  const image = await decode(file);
  return draw(image, image.width, image.height, LARGEST_SIDE);
}

function read(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The image cannot be read."));
    reader.readAsDataURL(blob);
  });
}

async function decode(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "That"} cannot be shown by this browser. Save it as PNG or JPEG.`);
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

export async function openVideo(video, kind) {
  const devices = navigator.mediaDevices;
  if (!devices) throw new Error("This browser gives no camera to pages without https, except on localhost.");
  try {
    video.srcObject = await (kind === "screen"
      ? devices.getDisplayMedia({ video: true })
      : devices.getUserMedia({ video: { facingMode: "environment" } }));
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    throw new Error(denied ? `The ${kind} was not allowed.` : `The ${kind} is not available (${error.message}).`);
  }
  await video.play();
}

export function closeVideo(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}
