//! Ranks that are processes, each with a card of the stand-in, NCCL's stand-in between them, and one connection to rank 0.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/compiler.rs"]
mod compiler;
#[path = "ranks/program.rs"]
mod program;
#[path = "common/runs.rs"]
mod runs;

use common::{embeddings, random_params, values};
use cuda_on_cpu::StandIn;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use topk_sae::backend::cuda::device::Device;
use topk_sae::backend::cuda::engine::Engine;
use topk_sae::backend::cuda::nccl::Nccl;
use topk_sae::backend::cuda::ranks::Shard;
use topk_sae::backend::cuda::{card, gemm::Math, sources::SOURCES};
use topk_sae::backend::{Look, StepPlan};
use topk_sae::model::TrainState;
use topk_sae::noise::Noise;
use topk_sae::peers::{Launcher, OnEnd, Peers, Place, Timing};
use topk_sae::spec::{ModelSpec, Precision, Relaxation};

/// Where ranks that are started by these tests meet.
const FOLDER: &str = "SAE_RANKS_MEET";
/// Set where a rank is the only one, and yet one.
const ALONE: &str = "SAE_RANKS_ALONE";
const STEPS: u64 = 12;

fn stand_in() -> &'static StandIn {
    static ONE: OnceLock<StandIn> = OnceLock::new();
    ONE.get_or_init(|| StandIn::new(SOURCES))
}

const TIMING: Timing = Timing {
    start: Duration::from_secs(60),
    beat: Duration::from_millis(200),
    silence: Duration::from_secs(10),
    standstill: Duration::from_secs(3),
};

/// Nothing by itself: what a process does that the tests below start as a rank, or as the only one. Prints its losses, as
/// bits too.
#[test]
fn trains_as_a_rank_if_asked() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let get = |name: &str| std::env::var(name).ok();
    let alone = || Place {
        rank: 0,
        count: 1,
        local_rank: 0,
        local_count: 1,
        launcher: Launcher::Torchrun,
        master: None,
    };
    let place = Place::of(&get).unwrap().or_else(|| get(ALONE).map(|_| alone()));
    let peers = place.map(|place| {
        let on_end: OnEnd = Box::new(|end| {
            println!("END {end}");
            Some(1)
        });
        Arc::new(
            Peers::join(place, &Path::new(&folder).join("ranks.json"), "a test", TIMING, on_end).unwrap(),
        )
    });
    let (d, m) = (24, 400);
    let data = embeddings(d, values(64 * d, 3));
    let spec = ModelSpec::plain(6).with(|spec| {
        (spec.warmup.relaxation, spec.warmup.pool) = (Relaxation::Lapsum, 20);
        (spec.objective.aux_k, spec.objective.dead_after) = (8, 100);
        spec.optimizer.clip_norm = Some(1.0);
    });
    let state = TrainState::start(random_params(d, m, false, 5), false);
    let mut device: Box<dyn Device> = Box::new(card::open(0, Math::F32).unwrap());
    let mut engine = match &peers {
        None => Engine::new("alone".into(), device, data, spec, Precision::F32, &state).unwrap(),
        Some(peers) => {
            let nccl = Nccl::join(peers.clone(), device.as_mut()).unwrap();
            let place = peers.place();
            let own = state.of_latents(Shard::of(place.rank, place.count, m).unwrap().latents());
            let name = format!("rank {}", place.rank);
            Engine::of_rank(name, device, data, spec, Precision::F32, &own, m, Box::new(nccl)).unwrap()
        }
    };
    for step in 0..STEPS {
        // The last batch is smaller.
        let rows: Vec<u32> =
            (0..if step + 1 == STEPS { 5 } else { 16 }).map(|n| (step as u32 * 16 + n) % 64).collect();
        let alpha = (step as f64 / 6.0).min(1.0);
        let plan = StepPlan { step, alpha, tau: 0.5, lr: 1e-2, l1: 0.1, noise: Noise::Philox { seed: 1 } };
        let waits = peers.as_ref().map(|peers| peers.waits());
        let stats = engine.step_now(&rows, &plan).unwrap();
        drop(waits);
        println!("LOSS {:016x} {}", stats.loss.to_bits(), stats.loss);
    }
    if let Some(peers) = &peers {
        peers.finish().unwrap();
    }
    println!("DONE");
}

/// `count` processes at once; what each of them printed, and when it ended.
fn together_until(count: usize, settings: &[(&str, &str)], launcher: &[&str; 3]) -> Vec<(Output, Instant)> {
    let folder = tempfile::tempdir().unwrap();
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "trains_as_a_rank_if_asked", "--nocapture"]);
        stand_in().serve(&[], &mut command);
        command
            .env("SAE_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cubins"))
            .env(FOLDER, folder.path())
            .env("STAND_IN_NCCL_FOLDER", folder.path());
        if count > 1 {
            let values = [rank, count, rank].map(|value| value.to_string());
            command.envs(launcher.iter().zip(values));
        }
        for (name, value) in settings {
            let name = if *name == ALONE { ALONE.to_owned() } else { format!("STAND_IN_{name}") };
            command.env(name, value);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let processes: Vec<_> = (0..count).map(start).collect();
    let waiting = |process: std::process::Child| {
        std::thread::spawn(move || (process.wait_with_output().unwrap(), Instant::now()))
    };
    let waiting: Vec<_> = processes.into_iter().map(waiting).collect();
    waiting.into_iter().map(|ends| ends.join().unwrap()).collect()
}

fn together(count: usize, settings: &[(&str, &str)], launcher: &[&str; 3]) -> Vec<Output> {
    together_until(count, settings, launcher).into_iter().map(|(output, _)| output).collect()
}

const TORCHRUN: [&str; 3] = ["RANK", "WORLD_SIZE", "LOCAL_RANK"];
const MPIRUN: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"];
const SRUN: [&str; 3] = ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"];

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Losses as bits and as numbers.
fn losses(output: &Output) -> Vec<(String, f64)> {
    let text = text(output);
    assert!(output.status.success() && text.contains("DONE") && !text.contains("STAND-IN:"), "{text}");
    let of = |line: &str| {
        let (bits, value) = line.strip_prefix("LOSS ")?.split_once(' ')?;
        Some((bits.to_owned(), value.parse().unwrap()))
    };
    text.lines().filter_map(of).collect()
}

#[test]
fn processes_of_every_launcher_train_as_one_does() {
    if !compiler::nvrtc() {
        return;
    }
    let alone = losses(&together(1, &[], &TORCHRUN)[0]);
    assert_eq!(alone.len(), STEPS as usize);
    let one = losses(&together(1, &[(ALONE, "1")], &TORCHRUN)[0]);
    assert!(one.iter().zip(&alone).all(|((_, got), (_, want))| (got / want - 1.0).abs() < 1e-6), "{one:?}");
    for (count, launcher, settings) in [
        (2, &TORCHRUN, &[][..]),
        (4, &MPIRUN, &[("NCCL_DELAY", "3")]),
        (3, &SRUN, &[("NCCL_DELAY", "1"), ("SEED", "7")]),
    ] {
        let all: Vec<_> = together(count, settings, launcher).iter().map(losses).collect();
        let again: Vec<_> = together(count, &[("NCCL_DELAY", "9")], launcher).iter().map(losses).collect();
        for (rank, own) in all.iter().chain(&again).enumerate() {
            let bits =
                |all: &[(String, f64)]| all.iter().map(|(bits, _)| bits.clone()).collect::<Vec<String>>();
            assert_eq!(bits(own), bits(&all[0]), "{count} ranks: {rank}");
            for ((_, got), (_, want)) in own.iter().zip(&alone) {
                assert!((got / want - 1.0).abs() < 1e-5, "{count} ranks: {got} {want}");
            }
        }
    }
}

#[test]
fn a_rank_that_is_killed_ends_all_with_its_name() {
    if !compiler::nvrtc() {
        return;
    }
    for which in [0, 2] {
        let all = together_until(3, &[("NCCL_KILL", &format!("{which}:40"))], &TORCHRUN);
        let killed = all[which].1;
        for (rank, (output, ended)) in all.iter().enumerate().filter(|(rank, _)| *rank != which) {
            assert!(ended.saturating_duration_since(killed) < Duration::from_secs(60));
            let text = text(output);
            assert_eq!(output.status.code(), Some(1), "{rank}: {text}");
            assert!(
                text.contains(&format!("END rank {which} on ")) && text.contains("without saying why"),
                "{text}"
            );
        }
    }
}

#[test]
fn a_rank_that_skips_an_exchange_ends_all() {
    if !compiler::nvrtc() {
        return;
    }
    let all = together(3, &[("NCCL_SKIP", "1:40")], &TORCHRUN);
    // The stand-in sees exchanges that do not go together, or all wait for one that never comes.
    assert!(all.iter().all(|output| !output.status.success()), "{}", text(&all[0]));
}
