  // ---- Begin: small trees unfolded, large ones to the first level ----
  compute();
  if (N < 400) open.fill(1);
  select();
  heads();
  bands();
  refresh();
  measure();
  requestAnimationFrame(() => { document.documentElement.dataset.ready = "yes"; });
