//! How random cases are run: how many, from which seed, and what is printed when one fails.

use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

thread_local! {
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Panics in cases are failures that proptest reports, once; their hundreds of messages while it shrinks are noise.
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
fn seed(default: u64) -> u64 {
    std::env::var("UNIONMOUNT_SEED")
        .ok()
        .map_or(default, |text| text.parse().expect("UNIONMOUNT_SEED: a number"))
}

/// Runs `check` on random values. A failure is shrunk and printed with the seed; panics in `check` count as failures.
pub fn run_cases<S: Strategy>(
    default_cases: u32,
    default_seed: u64,
    strategy: &S,
    check: impl Fn(S::Value) -> Result<(), String>,
) {
    let seed = seed(default_seed);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: cases(default_cases),
        failure_persistence: None,
        max_shrink_time: 60_000,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let started = Instant::now();
    let ran = std::cell::Cell::new(0);
    quieten_panics();
    QUIET.set(true);
    let result = runner.run(strategy, |value| {
        ran.set(ran.get() + 1);
        check(value).map_err(TestCaseError::fail)
    });
    QUIET.set(false);
    let took: Duration = started.elapsed();
    eprintln!("{} cases in {:.1} s, seed {seed}", ran.get(), took.as_secs_f64());
    if let Err(error) = result {
        panic!("UNIONMOUNT_SEED={seed}: {error}");
    }
}
