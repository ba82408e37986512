"use strict";

// A classic script: a page that was opened from a disk is not given any module, and has to say so.
(() => {
  /** @param {string} message */
  const refuse = (message) => {
    const notice = document.getElementById("notice");
    notice.textContent = message;
    notice.hidden = false;
    document.getElementById("loading").hidden = true;
  };
  if (location.protocol === "file:") {
    refuse(
      "A browser does not let a page read files from the disk by itself. Serve the folder that holds this one: " +
        "in it, run `python -m http.server --bind 127.0.0.1`, and open http://127.0.0.1:8000/web/. " +
        "`genkit preview` with the folder's name does the same.",
    );
  } else if (typeof WebAssembly !== "object") {
    refuse("This browser has no WebAssembly, or it is switched off. The model is computed with it.");
  } else {
    import("./app.js").then((app) => app.start()).catch((error) => refuse(error.message));
  }
})();
