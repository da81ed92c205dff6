// Places popovers beside their buttons, above or below, inside the window.

import { $ } from "./dom.js";

const GAP = 8; // pixels

/** @param {string} buttonId @param {string} popoverId @param {"above"|"below"} side */
export function placePopover(buttonId, popoverId, side) {
  const popover = $(popoverId);
  const place = () => {
    const button = $(buttonId).getBoundingClientRect();
    const { width } = popover.getBoundingClientRect();
    const left = Math.min(Math.max(GAP, button.left), Math.max(GAP, innerWidth - width - GAP));
    popover.style.left = `${left}px`;
    const room = side === "above" ? button.top - 2 * GAP : innerHeight - button.bottom - 2 * GAP;
    popover.style.maxHeight = `${room}px`;
    popover.style.top = side === "above" ? "auto" : `${button.bottom + GAP}px`;
    popover.style.bottom = side === "above" ? `${innerHeight - button.top + GAP}px` : "auto";
  };
  popover.addEventListener("toggle", (event) => {
    $(buttonId).setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState === "open") place();
  });
  addEventListener("resize", place);
}
