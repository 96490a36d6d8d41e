// Events of the store, while the page is looked at. A hidden page lets go of its connection: a browser has but six.

const shown = document.getElementById("live");

export function listen(path, hear) {
  let source = null;
  function open() {
    if (source || document.hidden) return;
    source = new EventSource(path());
    source.addEventListener("open", () => say("live", "live"));
    source.addEventListener("news", (event) => hear(JSON.parse(event.data)));
    source.addEventListener("trouble", (event) => say("lost", JSON.parse(event.data).message));
    source.addEventListener("error", () => say("lost", "not connected"));
  }
  function close() {
    source?.close();
    source = null;
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  open();
}

function say(kind, text) {
  shown.className = `live ${kind}`;
  shown.textContent = text;
}
