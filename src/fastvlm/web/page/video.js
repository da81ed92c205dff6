// Opens and closes the camera and the screen.

/**
 * Show the camera or the screen in `video`. Throws an Error in words.
 * @param {HTMLVideoElement} video @param {"camera"|"screen"} kind
 */
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

/** @param {HTMLVideoElement} video */
export function closeVideo(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}
