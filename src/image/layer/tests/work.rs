//! What a tar costs: steps grow with its size, whatever it says.

use proptest::prelude::*;

use super::*;

/// What one entry says. All of it is about few names, so that entries meet.
#[derive(Debug, Clone)]
enum Piece {
    Deep(usize, u8),
    Files(u8),
    Whiteouts(u8),
    Opaque(usize),
    Link(Vec<bool>),
    BelowLink(u8),
    Hardlink(usize),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (1usize..2000, 0u8..4).prop_map(|(depth, leaf)| Piece::Deep(depth, leaf)),
        (1u8..60).prop_map(Piece::Files),
        (1u8..60).prop_map(Piece::Whiteouts),
        (0usize..1500).prop_map(Piece::Opaque),
        prop::collection::vec(any::<bool>(), 1..1200).prop_map(Piece::Link),
        (0u8..20).prop_map(Piece::BelowLink),
        (0usize..2000).prop_map(Piece::Hardlink),
    ]
}

fn chain(depth: usize) -> String {
    vec!["d"; depth].join("/")
}

fn add(tar: Tar, piece: &Piece) -> Tar {
    let names = |count: u8, prefix: &str| (0..count).map(|at| format!("{prefix}{at}")).collect::<Vec<_>>();
    match piece {
        Piece::Deep(depth, leaf) => tar.file(&format!("{}/f{leaf}", chain(*depth)), b""),
        Piece::Files(count) => names(*count, "d/f").iter().fold(tar, |tar, name| tar.file(name, b"")),
        Piece::Whiteouts(count) => names(*count, "d/.wh.w").iter().fold(tar, |tar, name| tar.file(name, b"")),
        Piece::Opaque(depth) => tar.file(&[&chain(*depth), ".wh..wh..opq"].join("/"), b""),
        Piece::Link(steps) => {
            let target: Vec<&str> = steps.iter().map(|up| if *up { ".." } else { "d" }).collect();
            tar.symlink("l", &target.join("/"))
        }
        Piece::BelowLink(name) => tar.file(&format!("l/g{name}"), b""),
        Piece::Hardlink(depth) => {
            tar.file("h", b"").link("i", "h").link(&format!("{}/i", chain(*depth)), "h")
        }
    }
}

/// Returns the bound: no entry costs more than a way over links may: a few times the longest path.
fn bound(entries: u64, tar: &[u8]) -> u64 {
    let most = 8 * place::LONGEST_PATH as u64;
    entries * 16 + tar.len() as u64 * 2 + most
}

/// Returns the steps of unpacking, and the bound for them; `None` for what is refused.
fn work(tar: Vec<u8>) -> Option<(u64, u64)> {
    let bench = Bench::new();
    let applied = bench.apply(&tar).ok()?;
    Some((applied.work, bound(applied.entries + applied.implied, &tar)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn steps_grow_with_the_size_of_the_tar(pieces in prop::collection::vec(piece(), 1..20)) {
        let tar = pieces.iter().fold(Tar::default(), add);
        let below = pieces.iter().filter(|piece| matches!(piece, Piece::BelowLink(_))).count() as u64;
        if let Some((work, bound)) = work(tar.end()) {
            // What lies below links is bounded for each entry alone.
            let bound = bound + below * 8 * place::LONGEST_PATH as u64;
            prop_assert!(work <= bound, "{work} steps, {bound} expected");
        }
    }
}

#[test]
fn twice_as_much_takes_twice_as_many_steps() {
    let shapes: [fn(Tar, usize) -> Tar; 5] = [
        |tar, at| tar.file(&format!("{at}/{}", chain(1900)), b""),
        |tar, at| tar.file(&format!("d/f{at}"), b"").file("d/.wh..wh..opq", b""),
        |tar, at| tar.file(&format!("d/.wh.w{at}"), b"").file("d/.wh..wh..opq", b"").file(".wh.d", b""),
        |tar, at| tar.file(&format!("d/{at}/.wh.w"), b"").file(&format!("d/{at}/.wh..wh..opq"), b""),
        |tar, at| tar.symlink("l", &"d/../".repeat(150)).dir("d").file(&format!("l/{at}"), b""),
    ];
    for (index, shape) in shapes.iter().enumerate() {
        let count = if index == 0 { 2 } else { 200 };
        let of = |count| work((0..count).fold(Tar::default(), shape).end()).unwrap().0;
        let (once, twice) = (of(count), of(2 * count));
        assert!(twice <= 2 * once + once / 2, "shape {index}: {once} steps, and {twice} for twice as much");
    }
}

/// Shows a bound for what once took minutes: 199 bytes of a compressed archive.
#[test]
fn one_path_of_thousands_of_levels() {
    Bench::refused(Tar::default().file(&chain(30_000), b"").end(), &["59999 bytes", "4095"]);
    let (work, _) = work(Tar::default().file(&chain(2040), b"").end()).unwrap();
    assert!(work < 4 * 2040, "{work}");
}

#[test]
fn whiteouts_with_thousands_of_attributes() {
    let attributes = |count: usize| {
        Tar::default()
            .add(".wh.a", EntryType::Regular, |builder| {
                for at in 0..count {
                    builder.add_pax(&format!("SCHILY.xattr.user.{at}"), "");
                }
            })
            .end()
    };
    Bench::refused(attributes(60_000), &["attributes", "64 KiB"]);
    Bench::new().apply(&attributes(5_000)).unwrap();
}
