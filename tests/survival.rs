//! Runs that are killed, interrupted, starved or fed damaged files, as real processes.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "survival/figures.rs"]
mod figures;
#[path = "survival/folders.rs"]
mod folders;
#[path = "common/runs.rs"]
mod runs;
#[path = "survival/signals.rs"]
mod signals;
#[path = "survival/streams.rs"]
mod streams;

use common::values;
use runs::{checkpoints, command, hdf5_file, sae, sae_fails, sae_ok, same_run, start, write_data};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Options that use every part of the state: warm-up, AuxK, average, clipping, best checkpoint.
const RELAXED: &[&str] = &[
    "--preset=relaxed-topk",
    "--latents=96",
    "--k=5",
    "--steps=240",
    "--batch-size=48",
    "--anneal-steps=120",
    "--eval-every=20",
    "--checkpoint-every=7",
    "--aux-k=8",
    "--dead-after=96",
    "--ema=0.99",
    "--clip-norm=1",
    "--threads=2",
];
const DEFAULT: &[&str] =
    &["--latents=96", "--k=5", "--steps=240", "--batch-size=48", "--checkpoint-every=7", "--early-stop=20"];
/// Rows of 38 KB that stay in their file, in ten windows an epoch.
const STREAMED: &[&str] = &[
    "--latents=96",
    "--k=5",
    "--steps=240",
    "--batch-size=48",
    "--checkpoint-every=7",
    "--early-stop=20",
    "--memory=8000",
];
const SPARSE: &[&str] =
    &["--preset=sparse-l1", "--latents=80", "--k=6", "--epochs=150", "--checkpoint-every=9"];

fn spawn(args: &[&str]) -> Child {
    start(command(args).stdout(Stdio::null()).stderr(Stdio::null()))
}

fn train_args<'a>(data: &'a str, out: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", data, "--out", out];
    args.extend(options);
    args
}

/// Kills the run at random moments, resuming each time, until it finishes; returns how often it was killed.
fn kill_until_done(data: &str, out: &str, options: &[&str], whole: Duration, seed: u32) -> u32 {
    let mut kills = 0;
    for (attempt, random) in values(200, seed).into_iter().enumerate() {
        let started = Path::new(out).join("config.toml").exists();
        let mut child =
            if started { spawn(&["train", "--resume", out]) } else { spawn(&train_args(data, out, options)) };
        // Later attempts get more time, so that the run ends however slow the machine is.
        let limit = whole.mul_f64(f64::from((random + 1.0) / 2.0) * (0.3 + 0.1 * attempt as f64));
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "attempt {attempt} ended with {status}");
                return kills;
            }
            if Instant::now() >= deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                break;
            }
            std::thread::sleep(Duration::from_micros(300));
        }
    }
    panic!("the run did not finish");
}

fn killed_runs_equal_whole_ones(options: &[&str], rounds: u32) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = path("data.h5");
    write_data(Path::new(&data), 400, 24);
    let began = Instant::now();
    sae_ok(train_args(&data, &path("whole"), options));
    let whole = began.elapsed();
    let mut kills = 0;
    for round in 0..rounds {
        // Another moment on every run of the test; the number is printed so that a failure can be looked into.
        let seed = std::process::id().wrapping_mul(31).wrapping_add(round);
        println!("seed of the moments: {seed}");
        let out = path(&format!("killed{round}"));
        kills += kill_until_done(&data, &out, options, whole, seed);
        same_run(Path::new(&path("whole")), Path::new(&out));
    }
    println!("killed {kills} times");
    assert!(kills >= rounds, "the runs were too short to be killed: {kills} kills");
}

#[test]
fn a_relaxed_run_killed_at_random_moments_and_resumed_ends_with_the_same_bits() {
    killed_runs_equal_whole_ones(RELAXED, 6);
}

#[test]
fn a_default_run_killed_at_random_moments_and_resumed_ends_with_the_same_bits() {
    killed_runs_equal_whole_ones(DEFAULT, 3);
}

#[test]
fn a_sparse_l1_run_killed_at_random_moments_and_resumed_ends_with_the_same_bits() {
    killed_runs_equal_whole_ones(SPARSE, 3);
}

#[test]
fn a_run_of_rows_in_their_file_killed_at_random_moments_and_resumed_ends_with_the_same_bits() {
    killed_runs_equal_whole_ones(STREAMED, 4);
}

#[test]
fn a_file_that_is_written_to_under_a_run_ends_it_with_one_line_and_it_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("cut"));
    write_data(Path::new(&data), 400, 24);
    let bytes = std::fs::read(&data).unwrap();
    let options = [STREAMED, &["--steps=4000", "--latents=512", "--early-stop=0"]].concat();
    sae_ok(train_args(&data, &path("whole"), &options));
    let child = start(command(train_args(&data, &out, &options)).arg("--quiet").stderr(Stdio::piped()));
    while !Path::new(&out).exists() || checkpoints(Path::new(&out)).is_empty() {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::fs::write(&data, &bytes).unwrap();
    let (status, text) = runs::told(&child.wait_with_output().unwrap());
    assert_eq!(status, 1);
    assert!(
        text.contains("data.h5: was written to while it was read") && text.contains("--resume"),
        "{text}"
    );
    sae_ok(["train", "--resume", &out]);
    same_run(Path::new(&path("whole")), Path::new(&out));
}

#[test]
fn a_run_killed_as_soon_as_its_folder_exists_resumes_from_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("killed"));
    write_data(Path::new(&data), 400, 24);
    let mut child = spawn(&train_args(&data, &out, RELAXED));
    while !Path::new(&out).exists() && child.try_wait().unwrap().is_none() {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    sae_ok(["train", "--resume", &out]);
    sae_ok(train_args(&data, &path("whole"), RELAXED));
    same_run(Path::new(&path("whole")), Path::new(&out));
}

#[test]
fn interrupt_and_terminate_leave_a_checkpoint_and_status_130() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = path("data.h5");
    write_data(Path::new(&data), 400, 24);
    for signal in ["INT", "TERM"] {
        let out = path(signal);
        // No checkpoint is due before the end: the one on disk is the signal's.
        let long = ["--latents=64", "--k=4", "--steps=100000000", "--eval-every=100000000", "--quiet"];
        let child = start(command(train_args(&data, &out, &long)).stderr(Stdio::piped()));
        while !Path::new(&out).exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(200));
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{text}");
        assert!(text.contains("--resume") && text.lines().count() == 1, "{text}");
        assert_eq!(checkpoints(Path::new(&out)).len(), 1);
    }
}

/// Mounts a small file system in memory on `folder`; false where this user may not.
fn small_disk(folder: &Path, size: &str) -> bool {
    let options = format!("size={size}");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).output();
    mount.is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_disk_stops_the_run_with_one_line_and_it_resumes_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = path("data.h5");
    write_data(Path::new(&data), 400, 24);
    if !small_disk(&disk, "1600k") {
        println!("NOT RUN: this user may not mount a small file system; the full disk is not tested here");
        return;
    }
    let out = disk.join("run").to_str().unwrap().to_owned();
    let ballast = disk.join("ballast");
    // Room for the first checkpoints but not for the third.
    let failed = {
        std::fs::write(&ballast, vec![1u8; 1400 * 1024]).unwrap();
        let mut args = vec!["--quiet"];
        args.extend(train_args(&data, &out, RELAXED));
        sae(args)
    };
    let text = String::from_utf8(failed.stderr).unwrap();
    let left: Vec<_> = std::fs::read_dir(&disk).unwrap().map(|e| e.unwrap().file_name()).collect();
    let resumed = std::fs::remove_file(&ballast).is_ok() && sae(["train", "--resume", &out]).status.success();
    let whole = path("whole");
    sae_ok(train_args(&data, &whole, RELAXED));
    let checked = std::panic::catch_unwind(|| {
        assert_eq!(failed.status.code(), Some(1), "{text}");
        assert!(text.lines().count() == 1 && text.contains("space"), "{text}");
        assert!(text.contains(&format!("`sae train --resume {out}`")), "{text}");
        assert!(left.len() <= 2, "{left:?}");
        assert!(resumed, "the run did not resume");
        same_run(Path::new(&whole), Path::new(&out));
    });
    let unmounted = Command::new("umount").arg(&disk).status().unwrap().success();
    assert!(checked.is_ok() && unmounted);
}

/// Cuts a file in half; its other names keep the whole one.
fn cut(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn damaged_checkpoints_are_passed_over_and_the_bits_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, whole, hurt) = (path("data.h5"), path("whole"), path("hurt"));
    write_data(Path::new(&data), 400, 24);
    sae_ok(train_args(&data, &whole, RELAXED));
    sae_ok(train_args(&data, &hurt, RELAXED));
    let config = Path::new(&hurt).join("config.toml");
    let damage = |output: std::process::Output| {
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        let warned = text.lines().filter(|l| l.contains("damaged") && l.ends_with("skipped")).count();
        (warned, text)
    };
    let best = Path::new(&hurt).join("checkpoints/best.safetensors");
    cut(checkpoints(Path::new(&hurt)).last().unwrap());
    let (warned, text) = damage(sae(["train", "--resume", &hurt]));
    assert!(warned == 1 && text.contains("continuing from step 238"), "{text}");
    // Nothing but the best is whole: it is enough.
    checkpoints(Path::new(&hurt)).iter().for_each(|path| cut(path));
    let (warned, text) = damage(sae(["train", "--resume", &hurt]));
    assert!(warned == 2 && text.contains("best.safetensors"), "{text}");
    checkpoints(Path::new(&hurt)).iter().for_each(|path| cut(path));
    let (_, text) = damage(sae(["train", "--quiet", "--resume", &hurt]));
    assert_eq!(text, "");
    same_run(Path::new(&whole), Path::new(&hurt));
    // Nothing is whole.
    checkpoints(Path::new(&hurt)).iter().for_each(|path| cut(path));
    cut(&best);
    let before = std::fs::read(Path::new(&hurt).join("model.safetensors")).unwrap();
    let (status, text) = sae_fails(["train", "--resume", &hurt]);
    assert!(status == 1 && text.contains("damaged") && text.contains("no checkpoint is whole"), "{text}");
    assert!(before == std::fs::read(Path::new(&hurt).join("model.safetensors")).unwrap());
    // The way out that the message names.
    let config = config.to_str().unwrap();
    assert!(text.contains(&format!("sae train --config {config} --out {hurt} --overwrite")), "{text}");
    sae_ok(["train", "--config", config, "--out", &hurt, "--overwrite"]);
}

#[test]
fn where_one_checkpoint_is_kept_the_best_stands_in_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, whole, hurt) = (path("data.h5"), path("whole"), path("hurt"));
    write_data(Path::new(&data), 400, 24);
    let options = [RELAXED, &["--keep-checkpoints=1"]].concat();
    sae_ok(train_args(&data, &whole, &options));
    sae_ok(train_args(&data, &hurt, &options));
    checkpoints(Path::new(&hurt)).iter().for_each(|path| cut(path));
    sae_ok(["train", "--resume", &hurt]);
    same_run(Path::new(&whole), Path::new(&hurt));
}

#[test]
fn a_run_killed_between_saving_its_best_checkpoint_and_naming_it_names_it_on_resume() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("run"));
    write_data(Path::new(&data), 400, 24);
    // Two evaluations after the warm-up, the second worse than the first: a rate of 1 ruins the model.
    let options = [
        "--latents=64",
        "--k=4",
        "--steps=40",
        "--anneal-steps=0",
        "--eval-every=20",
        "--checkpoint-every=20",
        "--lr=1",
        "--keep-checkpoints=3",
    ];
    sae_ok(train_args(&data, &out, &options));
    let all = checkpoints(Path::new(&out));
    let best = Path::new(&out).join("checkpoints/best.safetensors");
    assert!(
        runs::tensors(&best) == runs::tensors(&all[0]),
        "the first must be the best: choose other options"
    );
    // What such a kill leaves: the best step's checkpoint as the last one, without its second name.
    std::fs::remove_file(&all[1]).unwrap();
    std::fs::remove_file(&best).unwrap();
    sae_ok(["train", "--resume", &out]);
    assert!(runs::tensors(&best) == runs::tensors(&all[0]));
}

#[test]
fn data_or_options_that_changed_are_refused_on_resume() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("run"));
    write_data(Path::new(&data), 400, 24);
    sae_ok(train_args(&data, &out, RELAXED));
    let config = Path::new(&out).join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let other = text.replace("lr = 0.001", "lr = 0.002");
    assert_ne!(other, text);
    std::fs::write(&config, other).unwrap();
    let (status, message) = sae_fails(["train", "--resume", &out]);
    assert!(status == 2 && message.contains("config.toml"), "{message}");
    std::fs::write(&config, text).unwrap();
    // Also where there are too few rows for the batches of the run.
    for rows in [401, 40] {
        write_data(Path::new(&data), rows, 24);
        let (status, message) = sae_fails(["train", "--resume", &out]);
        assert!(status == 2 && message.contains("the data of"), "{message}");
    }
    // A run without a checkpoint has its table of splits to compare with.
    std::fs::remove_dir_all(Path::new(&out).join("checkpoints")).unwrap();
    let (status, message) = sae_fails(["train", "--resume", &out]);
    assert!(status == 2 && message.contains("splits.tsv"), "{message}");
}

#[test]
fn a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("run"));
    write_data(Path::new(&data), 400, 24);
    let wild =
        ["--latents=64", "--k=4", "--steps=50", "--lr=1e25", "--anneal-steps=0", "--checkpoint-every=1"];
    let (status, message) = sae_fails(train_args(&data, &out, &wild));
    assert_eq!(status, 1);
    assert!(message.contains("at step 1;") && message.contains("--lr"), "{message}");
    assert!(message.contains("checkpoint of step 1 is kept"), "{message}");
    assert_eq!(checkpoints(Path::new(&out)).len(), 1);
}

/// What these tests stand on: they run side by side, and one's processes start while another writes its data.
#[test]
fn data_can_be_read_although_a_process_started_while_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.h5");
    let mut child = None;
    hdf5_file(&path, |_| child = Some(start(Command::new("sleep").arg("60"))));
    let read = hdf5::File::open(&path);
    let mut child = child.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    read.unwrap();
}
