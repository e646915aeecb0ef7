// Keeps the boxes of the operator's page up to date. Without this script the page is as of its loading.
"use strict";
const INTERVAL_MS = 5000;
const live = document.getElementById("live");
const state = document.getElementById("live-state");
async function look() {
  if (document.hidden || live.contains(document.activeElement)) return;
  try {
    const answer = await fetch("boxes", { headers: { accept: "text/html" }, signal: AbortSignal.timeout(INTERVAL_MS) });
    if (!answer.ok) throw new Error(String(answer.status));
    live.innerHTML = await answer.text();
    state.textContent = "Live: looked at every 5 seconds.";
    state.className = "soft";
  } catch (error) {
    state.textContent = "Not live: the gateway does not answer, so what stands here is old. (" + error.message + ")";
    state.className = "notice bad";
  }
}
if (live && state) {
  state.textContent = "Live: looked at every 5 seconds.";
  setInterval(look, INTERVAL_MS);
}
