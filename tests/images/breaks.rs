//! Pulls that break off: what came is not fetched again, whatever failed besides.

use std::fs;

use support::needs_program;

use super::faulty::{Fault, Faulty};
use super::lab::Lab;
use super::registry::{Registry, comes_to, named};

fn busy() -> Fault {
    Fault::Answer("503 Busy", "retry-after: 9999\r\n".to_owned(), "")
}

#[test]
fn what_came_outlasts_failures() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (_, id) = registry.pushed(&lab, "big:1", 3_000_000);
    lab.forget_all();
    let [large, small] = &lab.layers_made();
    // Before it fails, the small layer has come whole.
    let small_size = fs::metadata(lab.at(&format!("layout/blobs/sha256/{small}"))).unwrap().len();
    let failing = |fault: fn(usize) -> Fault| {
        let (large, small) = (large.clone(), lab.part(small));
        Faulty::new(registry.port, move |what, before| match what.contains(&large) {
            true => {
                comes_to(&small, small_size);
                fault(before)
            }
            false => Fault::None,
        })
    };
    // The large one breaks off, and is then refused; once more, it is refused at once.
    let broken = failing(|before| if before == 0 { Fault::Cut(1_000_000) } else { busy() });
    let refusing = failing(|_| busy());
    for proxy in [broken, refusing] {
        let what = format!("blob sha256:{large}: localhost:{} answers 503", proxy.port);
        lab.registry(&["pull", &named(proxy.port, "big:1")]).refused(1, &[&what]);
        assert_eq!(fs::metadata(lab.part(large)).unwrap().len(), 1_000_000);
    }
    // One that comes whole and isn't what it should be goes, and that alone; it comes again at once, for what was kept may
    // have been wrong.
    let wrong = failing(|before| if before == 0 { Fault::Wrong(500_000) } else { busy() });
    lab.registry(&["pull", &named(wrong.port, "big:1")]).refused(1, &["answers 503"]);
    assert_eq!(fs::metadata(lab.part(small)).unwrap().len(), small_size);
    assert!(fs::metadata(lab.part(large)).unwrap().len() == 0);
    assert!(!wrong.seen().iter().any(|one| one.contains(small)), "{:?}", wrong.seen());
    let whole = Faulty::new(registry.port, |_, _| Fault::None);
    let name = named(whole.port, "big:1");
    lab.registry(&["pull", &name]).ok();
    assert_eq!(lab.id(&name), id);
    assert!(!whole.seen().iter().any(|one| one.contains(small)), "{:?}", whole.seen());
    assert_eq!(fs::read_dir(lab.store().join("tmp")).unwrap().count(), 0);
    lab.verify();
}

#[test]
fn a_config_that_cannot_be_had_is_told_as_such() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (_, id) = registry.pushed(&lab, "x:1", 1000);
    lab.forget_all();
    let config = id.strip_prefix("sha256:").unwrap().to_owned();
    let proxy = Faulty::new(registry.port, move |what, _| match what.contains(&config) {
        true => busy(),
        false => Fault::None,
    });
    let told = lab.registry(&["pull", &named(proxy.port, "x:1")]);
    assert!(!told.err.contains("sent something else"), "{told:?}");
    told.refused(1, &["answers 503"]);
}

#[test]
fn what_is_larger_than_allowed_is_not_fetched() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    registry.pushed(&lab, "big:1", 1_000_000);
    lab.forget_all();
    let [large, small] = lab.layers_made();
    let proxy = Faulty::new(registry.port, |_, _| Fault::None);
    let pull = ["pull", "--max-size", "900k", &named(proxy.port, "big:1")];
    lab.registry(&pull).refused(1, &["its layers have 1", "--max-size"]);
    let seen = proxy.seen();
    assert!(!seen.iter().any(|one| one.contains(&large) || one.contains(&small)), "{seen:?}");
}
