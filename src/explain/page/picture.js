  // ---- The picture: larger, smaller, moved ----
  const canvas = $("canvas"), picture = canvas.querySelector("svg");
  const wide = Number(picture.getAttribute("width")), high = Number(picture.getAttribute("height"));
  let zoom = 0;
  /** Smaller than this its letters can't be read. */
  const LEAST = 0.9;
  function zoomTo(to, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const before = zoom || 1;
    zoom = Math.min(4, Math.max(0.2, to));
    picture.style.width = wide * zoom + "px";
    picture.style.height = high * zoom + "px";
    // What is under the pointer stays there.
    canvas.scrollLeft = (canvas.scrollLeft + x) * zoom / before - x;
    canvas.scrollTop = (canvas.scrollTop + y) * zoom / before - y;
    $("zoom").textContent = Math.round(zoom * 100) + " %";
  }
  // Without the margins, see page.css.
  const fitting = () => Math.min((canvas.clientWidth - 32) / wide, Math.max(200, canvas.clientHeight - 16) / high, 1.5);
  /** Shows all of it if it can be read then; else its beginning. */
  function begunPicture() {
    if (zoom) return;
    zoomTo(Math.max(LEAST, fitting()));
    canvas.scrollTo(0, 0);
  }
  $("fit").addEventListener("click", () => { zoomTo(fitting()); canvas.scrollTo(0, 0); });
  $("larger").addEventListener("click", () => zoomTo(zoom * 1.25));
  $("smaller").addEventListener("click", () => zoomTo(zoom / 1.25));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    const frame = canvas.getBoundingClientRect();
    zoomTo(zoom * Math.exp(-event.deltaY / 300), event.clientX - frame.left, event.clientY - frame.top);
    event.preventDefault();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const to = { "+": zoom * 1.25, "=": zoom * 1.25, "-": zoom / 1.25, 0: fitting() }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    zoomTo(to);
    event.preventDefault();
  });
  // With a mouse it is taken and moved; fingers scroll it.
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button) return;
    const at = { x: event.clientX + canvas.scrollLeft, y: event.clientY + canvas.scrollTop };
    const move = (to) => canvas.scrollTo(at.x - to.clientX, at.y - to.clientY);
    canvas.setPointerCapture(event.pointerId);
    canvas.classList.add("held");
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("lostpointercapture", () => {
      canvas.classList.remove("held");
      canvas.removeEventListener("pointermove", move);
    }, { once: true });
  });

