  // ---- Which rows there are ----
  const open = new Uint8Array(N), position = new Int32Array(N), siblings = new Int32Array(N), rowOf = new Int32Array(N);
  let rows = [], order = { by: "name", down: false };
  open[0] = 1;

  const ORDERS = {
    size: (p) => told(p) + (isDir(p) && state[p] < DELETED && (searching || wanted[HIDDEN]) ? gone[p] : 0),
    changes: (p) => changes[p],
    layer: (p) => layer(topHolding[p]),
  };
  function visible(p) { return filtered ? keep[p] : state[p] && state[p] < HIDDEN; }

  function flatten() {
    const list = [];
    siblings.fill(0);
    rowOf.fill(-1);
    const take = (p) => {
      position[p] = ++siblings[parent[p]];
      rowOf[p] = list.length;
      list.push(p);
    };
    const key = ORDERS[order.by];
    if (!key && !order.down) {
      for (let p = 1; p < N;) {
        if (!visible(p)) { p = end[p]; continue; }
        take(p);
        p = open[p] || searching ? p + 1 : end[p];
      }
    } else {
      // Names are in order as they come; sorting keeps that where all else is the same.
      const turn = order.down ? -1 : 1, compare = key ? (a, b) => turn * (key(a) - key(b)) : (a, b) => b - a;
      const visit = (dir) => {
        const children = [];
        for (let p = dir + 1; p < end[dir]; p = end[p]) if (visible(p)) children.push(p);
        for (const p of children.sort(compare)) {
          take(p);
          if (open[p] || searching) visit(p);
        }
      };
      visit(0);
    }
    rows = list;
  }

  // ---- The tree: only the rows in sight are elements ----
  const tree = $("tree"), holder = $("rows");
  let rowHeight = 26, cursor = 0, pool = [];

  function makeRow() {
    const row = text("div", "row"), chip = text("span", "chip");
    row.setAttribute("role", "treeitem");
    row.append(text("span", "sign"), text("span", "twist"), text("span", "name"), text("span", "target"), text("span", "count"), text("span", "size"), chip);
    for (const part of row.children) part.setAttribute("aria-hidden", "true");
    holder.append(row);
    return row;
  }

  const SIGNS = ["", "", "+", "~", "−", "○", "○"], STATES = ["", "", "page.added", "page.changed", "page.deleted", "page.hidden", ""];

  /** What is to be told of a row beside its name: what changed in a directory, or why a file isn't seen. */
  function remark(p) {
    const h = topHolding[p], s = state[p], by = hiddenBy(h);
    if (s === HIDDEN) return by && by <= top ? ofLayer("fate.hidden", by) : say("page.hidden");
    if (s === ELSEWHERE) return alone ? ofLayer("page.in_layer", layer(h)) : say("page.above");
    if (alone && by && kind(h)) return flags(h) & USED ? say("page.still_used") : ofLayer("fate.hidden", by);
    if (!isDir(p)) return "";
    const inside = changes[p] - (s > SAME ? 1 : 0);
    return inside ? counted("change", inside) : "";
  }

  function fillRow(row, p, index) {
    const h = topHolding[p], dir = isDir(p), s = state[p], target = targets.get(h);
    row.hidden = false;
    row.id = "place-" + p;
    row.dataset.place = p;
    row.className = "row s" + s + (dir ? " dir" : "") + (alone && s < HIDDEN && hiddenBy(h) && kind(h) ? " later" : "");
    row.style.top = index * rowHeight + "px";
    row.setAttribute("aria-level", depth[p]);
    row.setAttribute("aria-posinset", position[p]);
    row.setAttribute("aria-setsize", siblings[parent[p]]);
    row.setAttribute("aria-selected", p === cursor ? "true" : "false");
    const unfolded = open[p] || searching;
    if (dir) row.setAttribute("aria-expanded", unfolded ? "true" : "false");
    else row.removeAttribute("aria-expanded");
    const [sign, twist, name, leads, count, bytesOf, chip] = row.children;
    sign.textContent = SIGNS[s];
    sign.style.marginLeft = Math.min(depth[p] - 1, 40) * 16 + "px";
    twist.textContent = dir ? (unfolded ? "▾" : "▸") : "";
    name.textContent = names[p] + (dir ? "/" : "");
    name.title = names[p];
    leads.textContent = target === undefined ? "" : "→ " + target;
    leads.title = target || "";
    count.textContent = remark(p);
    bytesOf.textContent = kind(h) === FILE || dir ? human(told(p)) : "";
    chip.textContent = label(layer(h));
    chip.prepend(spot(layer(h)));
    chip.title = title(layer(h)) + say("page.colon") + data.layers[layer(h) - 1].name;
    row.setAttribute("aria-label", [names[p], STATES[s] && say(STATES[s]), dir ? say("kind.directory") : kindOf(h), target && say("page.to", { target }),
      bytesOf.textContent, count.textContent, s >= DELETED ? ofLayer("page.was_in", layer(h)) : title(layer(h))].filter(Boolean).join(say("page.comma")));
  }

  function paint() {
    const from = Math.max(0, Math.floor(tree.scrollTop / rowHeight) - 8);
    const until = Math.min(rows.length, Math.ceil((tree.scrollTop + tree.clientHeight) / rowHeight) + 8);
    while (pool.length < until - from) pool.push(makeRow());
    for (let i = 0; i < pool.length; i++) {
      if (from + i < until) fillRow(pool[i], rows[from + i], from + i);
      else { pool[i].hidden = true; pool[i].removeAttribute("id"); }
    }
    const active = rowOf[cursor];
    if (cursor && active >= from && active < until) tree.setAttribute("aria-activedescendant", "place-" + cursor);
    else tree.removeAttribute("aria-activedescendant");
  }

  function refresh() {
    flatten();
    holder.style.height = rows.length * rowHeight + "px";
    paint();
    const found = counted("match", matches);
    $("found").textContent = searching ? (unseen ? say("page.unseen", { found, count: number(unseen) }) : found)
      : rows.length ? counted("row", rows.length) : "";
    $("empty").hidden = rows.length > 0;
    $("empty").textContent = say(N === 1 ? "page.no_files"
      : searching ? "page.none_called"
      : wanted.slice(1, HIDDEN).includes(false) ? "page.filtered"
      : alone ? "page.empty_layer" : "page.all_deleted");
  }

  function all() { compute(); select(); refresh(); bands(); history(cursor); }

  function reveal(p) {
    for (let at = parent[p]; at; at = parent[at]) open[at] = 1;
    if (rowOf[p] < 0) { flatten(); holder.style.height = rows.length * rowHeight + "px"; }
  }

  function moveTo(p, quietly) {
    cursor = p;
    const at = rowOf[p];
    if (at >= 0) {
      const y = at * rowHeight;
      if (y < tree.scrollTop) tree.scrollTop = y;
      else if (y + rowHeight > tree.scrollTop + tree.clientHeight) tree.scrollTop = y + rowHeight - tree.clientHeight;
    }
    paint();
    if (!quietly) history(p);
  }

  function toggle(p, to) {
    if (!isDir(p) || searching) return;
    open[p] = to === undefined ? 1 - open[p] : to;
    refresh();
  }

  holder.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row) return;
    const p = Number(row.dataset.place);
    const folds = isDir(p) && (event.target.classList.contains("twist") || p === cursor);
    if (folds) toggle(p);
    moveTo(p);
    if (!folds) raiseDetail();
  });
  holder.addEventListener("dblclick", (event) => event.preventDefault());
  tree.addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
  tree.addEventListener("focus", () => { if (!cursor && rows.length) moveTo(rows[0]); });
  new ResizeObserver(() => measure()).observe(tree);
  function measure() {
    rowHeight = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row")) || 26;
    holder.style.height = rows.length * rowHeight + "px";
    paint();
  }

  let typed = "", typedAt = 0;
  tree.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !rows.length) return;
    const at = Math.max(0, rowOf[cursor]), p = rows[at], page = Math.max(1, Math.floor(tree.clientHeight / rowHeight) - 1);
    const go = (index) => moveTo(rows[Math.min(rows.length - 1, Math.max(0, index))]);
    switch (event.key) {
      case "ArrowDown": go(rowOf[cursor] < 0 ? 0 : at + 1); break;
      case "ArrowUp": go(at - 1); break;
      case "PageDown": go(at + page); break;
      case "PageUp": go(at - page); break;
      case "Home": go(0); break;
      case "End": go(rows.length - 1); break;
      case "ArrowRight":
        if (isDir(p) && !open[p] && !searching) toggle(p, 1);
        else if (at + 1 < rows.length && parent[rows[at + 1]] === p) go(at + 1);
        break;
      case "ArrowLeft":
        if (isDir(p) && open[p] && !searching) toggle(p, 0);
        else if (parent[p]) moveTo(parent[p]);
        break;
      case "Enter": case " ": toggle(p); history(p); raiseDetail(); break;
      case "*":
        for (let q = p, to = end[parent[p]]; q < to; q = end[q]) open[q] = 1;
        refresh();
        break;
      default:
        if (event.key.length !== 1 || event.key === "/") return;
        typed = event.timeStamp - typedAt > 700 ? event.key.toLowerCase() : typed + event.key.toLowerCase();
        typedAt = event.timeStamp;
        for (let i = 0; i < rows.length; i++) {
          const index = (at + (typed.length > 1 ? 0 : 1) + i) % rows.length;
          if (names[rows[index]].toLowerCase().startsWith(typed)) { go(index); break; }
        }
    }
    event.preventDefault();
  });

