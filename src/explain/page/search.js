  // ---- Search, filter, sort, fold ----
  const keep = new Uint8Array(N);
  let query = "", wanted = [true, true, true, true, true, false, false], lower = null, matches = 0, unseen = 0;
  let searching = false, filtered = false;

  /** Chooses the rows. A search goes through all layers: what is looked for is often what nobody sees any more. */
  function select() {
    searching = query !== "";
    const some = wanted.slice(1, HIDDEN).includes(false);
    filtered = searching || some || wanted[HIDDEN];
    matches = unseen = 0;
    if (!filtered) return;
    keep.fill(0);
    if (searching && !lower) lower = names.map((name) => name.toLowerCase());
    const paths = query.includes("/") ? new Array(N).fill("") : null;
    if (paths) for (let p = 1; p < N; p++) paths[p] = paths[parent[p]] + "/" + lower[p];
    for (let p = 1; p < N; p++) {
      const s = state[p];
      if (!s || (s < HIDDEN || !searching) && !wanted[s]) continue;
      if (searching && !(paths ? paths[p] : lower[p]).includes(query)) continue;
      // A directory that is merely there is kept for what is in it.
      if (!searching && some && isDir(p) && s === SAME) continue;
      keep[p] = 1;
      matches++;
      if (s >= HIDDEN) unseen++;
    }
    for (let p = N - 1; p > 0; p--) if (keep[p]) keep[parent[p]] = 1;
  }

  let timer = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      query = $("search").value.trim().toLowerCase();
      tree.scrollTop = 0;
      select();
      refresh();
    }, N > 20000 ? 150 : 0);
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape") { $("search").value = ""; query = ""; select(); refresh(); }
    if (event.key === "ArrowDown") { tree.focus(); if (rows.length) moveTo(rows[0]); event.preventDefault(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== $("search") && !event.ctrlKey && !event.altKey && !event.metaKey) {
      showTab("tree");
      $("search").focus();
      event.preventDefault();
    }
    if (event.key === "Escape") lowerDetail();
  });
  $("filter").addEventListener("change", (event) => {
    wanted[Number(event.target.value)] = event.target.checked;
    select();
    refresh();
  });
  $("heads").addEventListener("click", (event) => {
    const head = event.target.closest("button");
    if (!head) return;
    const by = head.dataset.by;
    // The largest first; names from a to z.
    order = { by, down: order.by === by ? !order.down : by !== "name" };
    tree.scrollTop = 0;
    heads();
    refresh();
  });
  function heads() {
    for (const head of $("heads").querySelectorAll("button")) {
      const chosen = head.dataset.by === order.by;
      head.setAttribute("aria-pressed", chosen ? "true" : "false");
      head.lastElementChild.textContent = chosen ? (order.down ? "▼" : "▲") : "";
      head.title = say(chosen ? "page.turn" : "page.sort", { column: head.firstChild.textContent.trim() });
    }
  }
  function foldAll(to) {
    for (let p = 1; p < N; p++) open[p] = to;
    refresh();
    if (cursor && rowOf[cursor] < 0) cursor = 0;
    paint();
  }
  $("unfold").addEventListener("click", () => foldAll(1));
  $("fold").addEventListener("click", () => foldAll(0));

