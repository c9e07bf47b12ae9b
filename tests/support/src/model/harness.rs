//! How random cases are run: how many, from which seed, and what is printed when one fails.

use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::layer::StackSpec;
use super::op::Op;
use super::shrink::shrink;

thread_local! {
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Panics in cases are failures that are reported once; their hundreds of messages while a case is made small are
/// noise.
fn quieten_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
}

/// How many cases a test runs: `UNIONMOUNT_CASES`, else `default`.
pub fn cases(default: u32) -> u32 {
    std::env::var("UNIONMOUNT_CASES")
        .ok()
        .map_or(default, |text| text.parse().expect("UNIONMOUNT_CASES: a number"))
}

/// The seed: `UNIONMOUNT_SEED`, else `default`, so that two runs are the same.
pub fn seed(default: u64) -> u64 {
    std::env::var("UNIONMOUNT_SEED")
        .ok()
        .map_or(default, |text| text.parse().expect("UNIONMOUNT_SEED: a number"))
}

/// Why a case failed.
pub struct Failure {
    /// What differs.
    pub text: String,
    /// The operations as they were performed.
    pub performed: Vec<Op>,
}

/// Checks one case; the last argument says whether operations are bent to what is there.
pub type Check<'a> = &'a dyn Fn(&StackSpec, &[Op], bool) -> Result<(), Failure>;

/// Runs `check` on random cases. A failure is made small and printed with the seed, in a form that can be pasted as a
/// regression test; panics in `check` count as failures.
pub fn run_cases(
    default_cases: u32,
    default_seed: u64,
    strategy: &impl Strategy<Value = (StackSpec, Vec<Op>)>,
    check: Check,
) {
    let (seed, cases, started) = (seed(default_seed), cases(default_cases), Instant::now());
    run_seeded(cases, seed, strategy, check);
    eprintln!("{cases} cases in {:.1} s, seed {seed}", started.elapsed().as_secs_f64());
}

/// The same on all processors at once, each with its share of the cases and a seed of its own: the next numbers.
pub fn run_cases_on_all_processors<S: Strategy<Value = (StackSpec, Vec<Op>)>>(
    default_cases: u32,
    default_seed: u64,
    strategy: impl Fn() -> S + Sync,
    check: impl Fn(&StackSpec, &[Op], bool) -> Result<(), Failure> + Sync,
) {
    let (seed, cases, started) = (seed(default_seed), cases(default_cases), Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    std::thread::scope(|scope| {
        for thread in 0..threads.min(cases) {
            let (strategy, check) = (&strategy, &check);
            let share = cases / threads + u32::from(thread < cases % threads);
            scope.spawn(move || run_seeded(share, seed + u64::from(thread), &strategy(), check));
        }
    });
    let took = started.elapsed().as_secs_f64();
    eprintln!("{cases} cases in {took:.1} s on {threads} threads, seeds from {seed}");
}

fn run_seeded(cases: u32, seed: u64, strategy: &impl Strategy<Value = (StackSpec, Vec<Op>)>, check: Check) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    quieten_panics();
    for number in 0..cases {
        let (spec, operations) = strategy.new_tree(&mut runner).expect("a case").current();
        let Err(failure) = guarded(check, &spec, &operations, true) else { continue };
        let fails = |spec: &StackSpec, operations: &[Op]| guarded(check, spec, operations, false).is_err();
        let (spec, operations) = if fails(&spec, &failure.performed) {
            shrink(spec, failure.performed, SHRINK_LIMIT, fails)
        } else {
            (spec, failure.performed)
        };
        let text =
            guarded(check, &spec, &operations, false).err().map_or(failure.text, |failure| failure.text);
        panic!(
            "case {number}, UNIONMOUNT_SEED={seed}: {text}\nthe case, made small:\n{spec:#?}\n{operations:#?}"
        );
    }
}

/// How long a failing case is made smaller.
const SHRINK_LIMIT: Duration = Duration::from_secs(40);

fn guarded(check: Check, spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    QUIET.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(spec, operations, steered)));
    QUIET.set(false);
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        // What was performed before a panic is not known: all of it, bent again the same way.
        let performed = if steered { bent(spec, operations) } else { operations.to_vec() };
        Err(Failure { text: text.unwrap_or_else(|| "a panic".to_owned()), performed })
    })
}

/// The operations as they are performed on a union that behaves.
fn bent(spec: &StackSpec, operations: &[Op]) -> Vec<Op> {
    let mut model = spec.merge();
    operations
        .iter()
        .map(|op| {
            let op = model.steer(op);
            model.apply(&op);
            op
        })
        .collect()
}
