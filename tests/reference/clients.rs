//! Many processes on one mount, each with a part of the tree of its own and the model of that part: what one does must
//! not disturb what another sees, whatever is cached and evicted meanwhile.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::mounted::vocabulary;
use support::model::check::Sequence;
use support::model::execute::{Executor, observe};
use support::model::generate::{ALPHABET, Vocabulary, case};
use support::model::layer::StackSpec;
use support::model::op::Op;
use support::{Layer, Stack};

const CLIENTS: u64 = 6;
const ROUNDS: u64 = 3;
/// What tells a process of this test binary to be a client: `SEED DIRECTORY`.
const CLIENT: &str = "UNIONMOUNT_TEST_CLIENT";

fn generated(seed: u64) -> (StackSpec, Vec<Op>) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(seed + 1000).to_le_bytes());
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let vocabulary = Vocabulary { operations: 60, ..vocabulary() };
    case(&vocabulary).new_tree(&mut runner).unwrap().current()
}

/// Does nothing but in the processes that the test below starts.
#[test]
fn client() {
    let Ok(text) = std::env::var(CLIENT) else { return };
    let (seed, directory) = text.split_once(' ').unwrap();
    let (seed, directory): (u64, _) = (seed.parse().unwrap(), PathBuf::from(directory));
    let (spec, operations) = generated(seed);
    let mut sequence = Sequence::strict(spec.merge());
    let mut executor = Executor::new(&directory);
    let done = sequence.run(&operations, |op| executor.run(op), || observe(&directory, &ALPHABET));
    if let Err(text) = done {
        panic!("client {seed}: {text}\nstack: {spec:#?}\n{:#?}", sequence.performed);
    }
}

#[test]
fn many_processes_at_once_each_behave_as_their_model() {
    for round in 0..ROUNDS {
        let seeds = round * CLIENTS..(round + 1) * CLIENTS;
        let specs: Vec<_> = seeds.map(|seed| (seed, generated(seed).0)).collect();
        let lowers = specs.iter().map(|(_, spec)| spec.lowers.len()).max().unwrap();
        let stack = Stack::new(lowers);
        for (seed, spec) in &specs {
            spec.upper.write(&Layer::at(stack.upper().root().join(seed.to_string())));
            for (node, layer) in spec.lowers.iter().zip(stack.lowers()) {
                node.write(&Layer::at(layer.root().join(seed.to_string())));
            }
        }
        let before = stack.lower_snapshots();
        let mount = stack.mount();
        let clients: Vec<_> = specs
            .iter()
            .map(|(seed, _)| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["clients::client", "--exact", "--nocapture"])
                    .env(CLIENT, format!("{seed} {}", mount.join(seed.to_string()).display()))
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for client in clients {
            let output = client.wait_with_output().unwrap();
            let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert!(
                output.status.success() && said(&output.stdout).contains("1 passed"),
                "{}\n{}",
                said(&output.stdout),
                said(&output.stderr)
            );
        }
        mount.unmount();
        stack.assert_lowers_unchanged(&before);
        stack.assert_workdir_clean();
    }
}
