//! `sae --device cuda` as a whole, on a driver and a cuBLAS that run on the CPU (`crates/cuda-on-cpu`): what the
//! program asks of a driver, in which order, when it waits, what it records, and what it says when something fails.
//!
//! The kernels' CUBIN comes from NVRTC, as for a card; their code from the emulation.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/compiler.rs"]
mod compiler;
#[path = "card/feeding.rs"]
mod feeding;
#[path = "common/runs.rs"]
mod runs;

use cuda_on_cpu::{StandIn, build};
use runs::{Place, command, metrics, same_run, start, told};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use topk_sae::backend::cuda::device::{Device, RecordKey};
use topk_sae::backend::cuda::{card, gemm::Math, sources::SOURCES};

fn stand_in() -> &'static StandIn {
    static ONE: OnceLock<StandIn> = OnceLock::new();
    ONE.get_or_init(|| StandIn::new(SOURCES))
}

fn beside_stand_in(command: Command) -> Output {
    beside_stand_in_after(&[], command)
}

/// The stand-in comes after the folders `first` for the system loader.
fn beside_stand_in_after(first: &[PathBuf], mut command: Command) -> Output {
    stand_in().serve(first, &mut command);
    command.env("SAE_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cubins"));
    start(command.stdout(Stdio::piped()).stderr(Stdio::piped())).wait_with_output().unwrap()
}

/// `sae` beside the stand-in.
impl Place {
    /// Runs `sae` with settings of the stand-in (`MEMORY=...`); counts of calls go to the file `counts`.
    fn sae(&self, settings: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = command(args);
        command.env("STAND_IN_COUNTS", self.path("counts"));
        for (name, value) in settings {
            command.env(format!("STAND_IN_{name}"), value);
        }
        beside_stand_in(command)
    }

    fn train(&self, settings: &[(&str, &str)], device: &str, out: &str, more: &[&str]) -> Output {
        let (data, out, device) = (self.name("data.h5"), self.name(out), format!("--device={device}"));
        let mut args = vec!["train", &data, "--out", &out, &device, "--quiet"];
        args.extend(more);
        self.sae(settings, &args)
    }

    fn trained(&self, settings: &[(&str, &str)], device: &str, out: &str, more: &[&str]) -> PathBuf {
        well(&self.train(settings, device, out, more));
        self.path(out)
    }

    /// How often each function was called in the last process, and what was left at its end.
    fn counts(&self) -> HashMap<String, u64> {
        let text = std::fs::read_to_string(self.path("counts")).unwrap();
        let pair = |line: &str| {
            let (name, count) = line.split_once('\t').unwrap();
            (name.to_owned(), count.parse().unwrap())
        };
        text.lines().map(pair).collect()
    }
}

/// Fails unless it succeeded without a word from the stand-in; its standard output.
fn well(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("STAND-IN"), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A column of `metrics.csv`.
fn column(run: &Path, name: &str) -> Vec<f64> {
    let mut reader = csv::Reader::from_path(run.join("metrics.csv")).unwrap();
    let at = reader.headers().unwrap().iter().position(|header| header == name).unwrap();
    reader.records().map(|record| record.unwrap()[at].parse().unwrap()).collect()
}

fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert!(got.len() == want.len() && !want.is_empty(), "{what}");
    for (step, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs(), "{what}, {step}: {got} beside {want}");
    }
}

const SIZES: [&str; 4] = ["--latents=64", "-k=4", "--batch-size=16", "--steps=24"];

#[test]
fn every_kind_of_model_trains_as_on_the_cpu_and_leaves_nothing_behind() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let kinds: [&[&str]; 9] = [
        &[],
        &["--preset=relaxed-topk", "--anneal-steps=12", "--tied"],
        &["--preset=topk", "--aux-k=8"],
        &["--preset=sparse-l1", "--anneal-steps=0"],
        &["--relaxation=anneal-k", "--tied", "--unit-norm-decoder=true", "--clip-norm=0.5", "--ema=0.9"],
        &["--activation=batch-topk", "--prefixes=8,24", "--aux-k=8"],
        &["--activation=batch-topk", "--relaxation=anneal-k", "--anneal-steps=12", "--pool=9"],
        &["--activation=jumprelu", "--prefixes=auto", "--clip-norm=0.5"],
        &["--activation=relu", "--tied"],
    ];
    for (i, kind) in kinds.iter().enumerate() {
        let args = [&SIZES, *kind, &["--eval-every=3"]].concat();
        let (on_cpu, on_card) = (format!("cpu{i}"), format!("card{i}"));
        let (cpu, card) =
            (place.trained(&[], "cpu", &on_cpu, &args), place.trained(&[], "cuda", &on_card, &args));
        // Thresholds start at a score, which rounding then puts on one side or the other.
        let wider = if kind.contains(&"--activation=jumprelu") { 10.0 } else { 1.0 };
        for (name, tolerance) in [("train_loss", 1e-3), ("val_fvu", 1e-2)] {
            let (card, cpu) = (column(&card, name), column(&cpu, name));
            close(&format!("{kind:?}: {name}"), &card, &cpu, wider * tolerance);
        }
        let counts = place.counts();
        for left in ["bytes left", "pinned blocks left", "streams left"] {
            assert_eq!(counts[left], 0, "{kind:?}: {left}");
        }
    }
}

#[test]
fn rows_so_wide_that_a_kernel_must_ask_for_its_shared_memory_train() {
    if !compiler::nvrtc() {
        return;
    }
    // The first fit into what a block has without asking, but not with the kernel's static shared memory.
    for width in [4050, 4100] {
        let place = Place::with_data(20, width);
        let args = ["--latents=16", "-k=2", "--batch-size=8", "--steps=4", "--eval-every=2"];
        let (cpu, card) =
            (place.trained(&[], "cpu", "cpu", &args), place.trained(&[], "cuda", "card", &args));
        close("loss", &column(&card, "train_loss"), &column(&cpu, "train_loss"), 1e-3);
    }
}

/// Set in the process whose system loader finds the stand-in.
const INSIDE: &str = "SAE_TEST_STAND_IN";

/// Whether this process has the stand-in; else the test `name` is run again in one that has, and must pass there.
fn inside(name: &str) -> bool {
    inside_with(name, &[])
}

/// The same with settings of the stand-in.
fn inside_with(name: &str, settings: &[(&str, &str)]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if compiler::nvrtc() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
        again.envs(settings.iter().map(|(name, value)| (format!("STAND_IN_{name}"), value)));
        let text = well(&beside_stand_in(again));
        assert!(text.contains("1 passed"), "{text}");
    }
    false
}

#[test]
fn more_messages_than_can_be_under_way_arrive_whole() {
    if !inside("more_messages_than_can_be_under_way_arrive_whole") {
        return;
    }
    let mut card = card::open(0, Math::F32).unwrap();
    // Some need larger slots than those before them.
    let sizes: Vec<usize> = (0..100).map(|i| 1 + i * 7919 % 9000).collect();
    let mut sent: Vec<_> = sizes.iter().map(|&size| card.allocate(size, "a message").unwrap()).collect();
    for (i, (memory, &size)) in sent.iter_mut().zip(&sizes).enumerate() {
        card.send(memory, size, &mut |bytes| bytes.fill(i as u8)).unwrap();
    }
    for (i, (memory, &size)) in sent.iter().zip(&sizes).enumerate() {
        let mut got = vec![0; size];
        card.read(memory, 0, &mut got).unwrap();
        assert!(got.iter().all(|&byte| byte == i as u8), "message {i} of {size} bytes");
    }
}

#[test]
fn work_is_timed_on_a_driver_that_has_only_the_old_clock() {
    if !inside("work_is_timed_on_a_driver_that_has_only_the_old_clock") {
        return;
    }
    let mut card = card::open(0, Math::F32).unwrap();
    let mut memory = card.allocate(1 << 20, "what is set to zero").unwrap();
    let seconds = card.timed(&mut |card| card.zero(&mut memory, 0..1 << 20)).unwrap();
    assert!(seconds > 0.0 && seconds < 60.0, "{seconds}");
}

/// Opening a card and closing one synchronize the device, which would spoil the record of another thread.
#[test]
fn cards_open_and_close_while_another_thread_records() {
    if !inside("cards_open_and_close_while_another_thread_records") {
        return;
    }
    let (open, recording) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let closed_meanwhile = card::open(0, Math::F32).unwrap();
            open.wait();
            recording.wait();
            drop(closed_meanwhile);
            drop(card::open(0, Math::F32).unwrap());
        });
        let mut card = card::open(0, Math::F32).unwrap();
        let mut memory = card.allocate(64, "what is set to zero").unwrap();
        let key = RecordKey { kind: "zero", n_rows: 1, slot: 0 };
        // The first time it runs, the second time it is recorded.
        card.record(key, &mut |card| card.zero(&mut memory, 0..64)).unwrap();
        open.wait();
        let recorded = card.record(key, &mut |card| {
            recording.wait();
            // Time enough for the other thread to do its worst.
            std::thread::sleep(std::time::Duration::from_millis(500));
            card.zero(&mut memory, 0..64)
        });
        recorded.unwrap();
        card.synchronize().unwrap();
        others.join().unwrap();
    });
}

#[test]
fn a_step_is_one_replay_and_nothing_waits_between_evaluations() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let count = |steps: &str, more: &[&str]| {
        let rare =
            ["--eval-every=1000", "--checkpoint-every=1000", "--latents=64", "-k=4", "--batch-size=16"];
        let args = [&rare[..], more, &[steps, "--overwrite"]].concat();
        place.trained(&[], "cuda", "run", &args);
        place.counts()
    };
    for more in [&["--preset=topk"][..], &["--preset=relaxed-topk", "--anneal-steps=80"]] {
        let (few, many) = (count("--steps=100", more), count("--steps=140", more));
        let added = |name: &str| many[name] as i64 - few[name] as i64;
        assert_eq!(added("cuGraphLaunch"), 40, "{more:?}");
        let same =
            ["cuLaunchKernel", "cublasGemmEx", "cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamBeginCapture_v2"];
        for name in same {
            assert_eq!(added(name), 0, "{more:?}: {name}");
        }
        // What is sent with a step: its numbers and rows, in one message.
        assert_eq!(added("cuMemcpyHtoDAsync_v2"), 40, "{more:?}");
        // The only waits are those of who fetches the losses of many steps, now and then by the clock.
        assert_eq!(added("cuStreamSynchronize"), added("cuMemcpyDtoHAsync_v2"), "{more:?}");
    }
}

#[test]
fn rows_that_travel_with_each_batch_give_the_bits_of_rows_on_the_card() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let args = [&SIZES[..], &["--precision=bf16", "--eval-every=12"]].concat();
    let runs = ["first", "again"].map(|name| place.trained(&[], "cuda", name, &args));
    same_run(&runs[0], &runs[1]);
    let resident = place.counts();
    // No room for the data beside the 8 MiB of cuBLAS and the buffers of some thousand rows.
    let little = [("MEMORY", "9000000"), ("CARD", "Stand-in=8.6")];
    same_run(&runs[0], &place.trained(&little, "cuda", "travelling", &args));
    let more = place.counts()["bytes sent"] as i64 - resident["bytes sent"] as i64;
    assert!(more > 24 * 16 * 16 * 4, "{more}");
}

#[test]
fn rows_in_their_file_reach_the_card_whole_or_batch_by_batch_with_the_same_bits() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    // 3,840 bytes of rows, in windows of 750.
    let args = [&SIZES[..], &["--memory=1500", "--eval-every=3"]].concat();
    let whole = place.trained(&[], "cuda", "whole", &args);
    let little = [("MEMORY", "9000000"), ("CARD", "Stand-in=8.6")];
    same_run(&whole, &place.trained(&little, "cuda", "travelling", &args));
    let cpu = place.trained(&[], "cpu", "cpu", &args);
    close("loss", &column(&whole, "train_loss"), &column(&cpu, "train_loss"), 1e-3);
}

#[test]
fn a_run_that_stops_early_takes_its_best_weights_up_in_the_memory_that_the_card_gave() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    for precision in ["--precision=f32", "--precision=bf16"] {
        let stops = ["--anneal-steps=0", "--eval-every=2", "--lr=1", "--overwrite", precision];
        let run = place.trained(&[], "cuda", "run", &[&SIZES[..], &stops, &["--early-stop=1"]].concat());
        let early = place.counts();
        let figures = std::fs::read_to_string(run.join("summary.json")).unwrap();
        let figures: serde_json::Value = serde_json::from_str(&figures).unwrap();
        let (steps, fvu) = (column(&run, "step"), column(&run, "val_fvu"));
        let best = steps.iter().position(|step| Some(*step) == figures["best_step"].as_f64()).unwrap();
        assert!(best + 1 < steps.len(), "the last step was the best: choose other options");
        // All rows of the split were measured on the way, with the same weights.
        close(precision, &[figures["val"]["fvu"].as_f64().unwrap()], &fvu[best..=best], 1e-12);
        assert_eq!(figures["steps"], figures["best_step"]);
        place.trained(&[], "cuda", "run", &[&SIZES[..], &stops, &["--early-stop=0"]].concat());
        let all = place.counts();
        for name in ["cuDevicePrimaryCtxRetain", "cuMemAlloc_v2"] {
            assert_eq!(early[name], all[name], "{precision}: {name}");
        }
    }
}

#[test]
fn a_card_that_is_lost_leaves_a_run_that_goes_on_to_the_same_bits() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let args = [&SIZES[..], &["--checkpoint-every=6", "--eval-every=6"]].concat();
    let whole = place.trained(&[], "cuda", "whole", &args);
    let (_, text) = told(&place.train(&[("LOST", "300")], "cuda", "lost", &args));
    assert!(text.contains("CUDA_ERROR_LAUNCH_FAILED") && text.contains("sae train --resume"), "{text}");
    let lost = place.name("lost");
    well(&place.sae(&[], &["train", "--resume", &lost, "--device=cuda", "--quiet"]));
    assert_ne!(metrics(&whole).len(), 0);
    same_run(&whole, Path::new(&lost));
}

/// A shared object with these functions.
fn copy_of(folder: &Path, file: &str, functions: &str) {
    let text = format!("#define API extern \"C\" __attribute__((visibility(\"default\")))\n{functions}");
    std::fs::copy(build::beside(&[("copy.cpp", &text)]), folder.join(file)).unwrap();
}

#[test]
fn a_copy_that_does_not_know_the_card_is_skipped_by_name_for_one_that_does() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    // What the system loader finds first, as a distribution's packages: NVRTC for old cards, cuBLAS before Blackwell.
    copy_of(
        &place.path(""),
        "libnvrtc.so",
        "API int nvrtcVersion(int *a, int *b) { *a = 12; *b = 4; return 0; }
         API int nvrtcGetNumSupportedArchs(int *n) { *n = 1; return 0; }
         API int nvrtcGetSupportedArchs(int *a) { *a = 80; return 0; }
         API int nvrtcCreateProgram() { return 5; }
         API int nvrtcDestroyProgram() { return 5; }
         API int nvrtcCompileProgram() { return 5; }
         API int nvrtcGetProgramLogSize() { return 5; }
         API int nvrtcGetProgramLog() { return 5; }
         API int nvrtcGetCUBINSize() { return 5; }
         API int nvrtcGetCUBIN() { return 5; }
         API int nvrtcGetPTXSize() { return 5; }
         API int nvrtcGetPTX() { return 5; }",
    );
    copy_of(
        &place.path(""),
        "libcublas.so",
        "API int cublasGetProperty(int which, int *v) { *v = which == 0 ? 12 : 4; return 0; }
         API int cublasCreate_v2() { return 1; }
         API int cublasDestroy_v2() { return 1; }
         API int cublasSetStream_v2() { return 1; }
         API int cublasSetWorkspace_v2() { return 1; }
         API int cublasSetMathMode() { return 1; }
         API int cublasGemmEx() { return 1; }",
    );
    let beside = |args: &[&str]| {
        let mut command = command(args);
        command.env("STAND_IN_CARD", "New=12.0");
        well(&beside_stand_in_after(&[place.path("")], command))
    };
    let listed = beside(&["devices"]);
    let [nvrtc, cublas] = ["libnvrtc.so", "libcublas.so"].map(|file| {
        let from = listed.lines().position(|line| line.contains(&format!(" {file} "))).unwrap();
        listed.lines().skip(from).take(2).collect::<Vec<_>>().join("\n")
    });
    for (what, used) in [(&nvrtc, "site-packages"), (&cublas, stand_in().folder().to_str().unwrap())] {
        let skipped = "skipped the system loader: version 12.4 does not know compute capability 12.0";
        assert!(what.contains(skipped) && what.contains(used), "{listed}");
    }
    assert!(listed.contains("takes cuda:0"), "{listed}");
    let (data, out) = (place.name("data.h5"), place.name("run"));
    beside(&["train", &data, "--out", &out, "--device=cuda", "--quiet", "--latents=64", "-k=4", "--steps=4"]);
}

#[test]
fn what_a_driver_refuses_is_told_in_one_line() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a [&'a str]);
    let cases: [Case; 6] = [
        (&[("CARD", "")], "cuda", &["lists no device", "CUDA_VISIBLE_DEVICES"]),
        (&[("SERVES", "11080")], "cuda", &["driver is too old", "11.8"]),
        (&[("SERVES", "12040")], "cuda", &["NVRTC", "driver is too old", "up to 12.4", "update the driver"]),
        (&[("CARD", "Tesla V100=7.0")], "cuda", &["Tesla V100", "7.0", "--device cpu"]),
        (&[("CARD", "A=8.6;B=9.0")], "cuda:2", &["can be used here: 2", "sae devices"]),
        (
            &[("MEMORY", "8400000"), ("CARD", "A=8.6")],
            "cuda",
            &["not enough GPU memory", "--batch-size", "bf16"],
        ),
    ];
    for (settings, device, words) in cases {
        let (_, text) = told(&place.train(settings, device, "run", &SIZES));
        assert!(words.iter().all(|word| text.contains(word)), "{settings:?}: {text}");
    }
    let listed = well(&place.sae(&[("CARD", "A=8.6;B=9.0")], &["devices"]));
    for part in ["cuda:0  A, compute capability 8.6", "cuda:1  B, compute capability 9.0", "takes cuda:0"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let text = place.trained(&[("CARD", "A=8.6;B=9.0")], "cuda:1", "second", &SIZES);
    let summary = std::fs::read_to_string(text.join("summary.json")).unwrap();
    assert!(summary.contains("cuda:1 B"), "{summary}");
}
