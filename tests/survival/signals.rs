//! Signals of every kind, at every moment, to every command that takes a while.

use crate::runs::{self, Place, SAE, checkpoints, command, sae_ok, start, tensors};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// A run that ends by a signal alone: no checkpoint is due before its end.
const LONG: [&str; 5] = ["--latents=64", "--k=4", "--steps=100000000", "--eval-every=100000000", "--quiet"];

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn send(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
}

/// Waits until the process heeds SIGTERM by itself, as `/proc` tells it; elsewhere for a while.
fn wait_for_handlers(child: &Child) {
    for _ in 0..2000 {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", child.id())) else {
            return pause(500);
        };
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap());
        if caught >> (15 - 1) & 1 == 1 {
            return;
        }
        pause(1);
    }
    panic!("the process does not heed SIGTERM");
}

fn wait_for(path: &Path) {
    for _ in 0..60_000 {
        if path.exists() {
            return;
        }
        pause(1);
    }
    panic!("{} did not come", path.display());
}

/// Starts a long run, and comes back when it is in its steps.
fn long_run(place: &Place, out: &str) -> Child {
    let (data, run) = (place.name("data.h5"), place.name(out));
    let args = [&["train", &data, "--out", &run], &LONG[..]].concat();
    let child = start(command(args).stdout(Stdio::null()).stderr(Stdio::piped()));
    wait_for(&place.path(out));
    pause(200);
    child
}

/// Fails unless the process ended as a request asks for, with one line; that line.
fn interrupted(child: Child) -> String {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(130), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error: interrupted")).count(), 1, "{text}");
    text
}

#[test]
fn every_signal_that_asks_to_stop_may_come_twice_and_leaves_a_checkpoint() {
    let place = Place::with_data(400, 24);
    for signals in
        ["HUP", "INT INT", "TERM TERM", "HUP HUP", "INT TERM", "TERM INT", "HUP TERM", "INT INT INT"]
    {
        for gap in [0, 30] {
            let out = format!("{}-{gap}", signals.replace(' ', "-"));
            let child = long_run(&place, &out);
            // With no gap all come while the first still waits for the step to end.
            let pid = child.id();
            let kills: Vec<String> = signals.split(' ').map(|s| format!("kill -{s} {pid}")).collect();
            let script = kills.join(&format!("; sleep 0.0{gap}; ").replace("sleep 0.00; ", ""));
            let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().unwrap();
            let text = interrupted(child);
            assert!(text.contains("--resume") && text.lines().count() == 1, "{signals}: {text}");
            assert_eq!(checkpoints(&place.path(&out)).len(), 1, "{signals} {gap}");
        }
    }
}

#[test]
fn a_hangup_that_is_ignored_at_the_start_stays_ignored() {
    let place = Place::with_data(400, 24);
    let mut args = vec!["-c", "trap '' HUP; exec \"$@\"", "sh", SAE, "--device=cpu", "train"];
    let (data, out) = (place.name("data.h5"), place.name("run"));
    args.extend([data.as_str(), "--out", &out]);
    args.extend(LONG);
    let mut child = start(Command::new("sh").args(args).stdout(Stdio::null()).stderr(Stdio::piped()));
    wait_for(&place.path("run"));
    for _ in 0..3 {
        send(&child, "HUP");
        pause(100);
        assert!(child.try_wait().unwrap().is_none(), "the hangup ended the run");
    }
    // The hangups were no first request: this one leaves a checkpoint.
    send(&child, "TERM");
    interrupted(child);
    assert_eq!(checkpoints(&place.path("run")).len(), 1);
}

#[test]
fn a_quit_signal_ends_the_process_as_it_does_everywhere() {
    let place = Place::with_data(400, 24);
    let (data, out) = (place.name("data.h5"), place.name("run"));
    let mut args = vec!["-c", "ulimit -c 0; exec \"$@\"", "sh", SAE, "--device=cpu", "train"];
    args.extend([data.as_str(), "--out", &out]);
    args.extend(LONG);
    let mut child = start(Command::new("sh").args(args).stdout(Stdio::null()).stderr(Stdio::null()));
    wait_for(&place.path("run"));
    send(&child, "QUIT");
    assert_eq!(child.wait().unwrap().signal(), Some(3));
}

/// A model of M latents on the data.
fn model(place: &Place, latents: &str) -> String {
    let (data, run) = (place.name("data.h5"), place.name("model"));
    let few = ["--k=4", "--steps=2", "--anneal-steps=0", "--early-stop=0", "--eval-rows=16", "--init=linear"];
    let args = [&["train", &data, "--out", &run, "--quiet", latents], &few[..]].concat();
    sae_ok(args);
    run
}

#[test]
fn a_request_more_than_two_seconds_after_the_first_ends_a_process_that_is_stuck() {
    let place = Place::with_data(400, 24);
    let run = model(&place, "--latents=4096");
    // A result that nobody reads: the process waits for its reader.
    let args = ["features", &run, &place.name("data.h5"), "--quiet", "--json"];
    let mut child = start(command(args).stdout(Stdio::piped()).stderr(Stdio::piped()));
    pause(2000);
    for gap in [300, 300, 2000] {
        assert!(child.try_wait().unwrap().is_none(), "a repeat ended it, or it was not stuck");
        send(&child, "INT");
        pause(gap);
    }
    send(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn signals_while_a_run_starts_leave_nothing_or_a_run_that_can_go_on() {
    let place = Place::with_data(20_000, 24);
    let whole = place.name("whole");
    let options = ["--latents=96", "--k=4", "--steps=30", "--anneal-steps=0", "--quiet"];
    let data = place.name("data.h5");
    sae_ok([&["train", &data, "--out", &whole], &options[..]].concat());
    let mut started = 0;
    for ms in [0, 3, 6, 10, 15, 20, 30, 40, 60, 80, 120, 160] {
        let out = place.name(&format!("run{ms}"));
        let args = [&["train", &data, "--out", &out], &options[..]].concat();
        let child = start(command(args).stdout(Stdio::null()).stderr(Stdio::piped()));
        wait_for_handlers(&child);
        pause(ms);
        send(&child, if ms % 20 == 0 { "INT" } else { "HUP" });
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!([Some(130), Some(0)].contains(&output.status.code()), "{ms}: {text}");
        let left: Vec<String> = std::fs::read_dir(place.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{ms}: {left:?}");
        if Path::new(&out).exists() {
            started += 1;
            sae_ok(["train", "--resume", &out, "--quiet"]);
            runs::same_run(Path::new(&whole), Path::new(&out));
        } else {
            assert!(text.contains("nothing was written"), "{ms}: {text}");
        }
    }
    println!("{started} of 12 had a folder");
}

#[test]
fn a_signal_in_an_evaluation_on_the_way_ends_it_and_the_run_goes_on_to_the_same_bits() {
    let place = Place::with_data(40_000, 24);
    let data = place.name("data.h5");
    for (last, waits_for) in [(false, 1), (true, 3)] {
        let steps = if last { "--steps=4" } else { "--steps=6" };
        let every = if last { "--eval-every=4" } else { "--eval-every=2" };
        let options = ["--latents=8192", "--k=4", steps, every, "--anneal-steps=0", "--checkpoint-every=1"];
        let more = ["--eval-rows=40000", "--init=linear", "--keep-checkpoints=4", "--quiet"];
        let (whole, cut) = (place.name(&format!("whole{last}")), place.name(&format!("cut{last}")));
        sae_ok([&["train", &data, "--out", &whole], &options[..], &more].concat());
        let args = [&["train", &data, "--out", &cut], &options[..], &more].concat();
        let checkpoint =
            |run: &str, step: u64| Path::new(run).join(format!("checkpoints/step-{step:012}.safetensors"));
        // Step 4 of the whole run was followed by such an evaluation: how long both took here.
        let written = |step| checkpoint(&whole, step).metadata().unwrap().modified().unwrap();
        let gap = written(4).duration_since(written(3)).unwrap();
        // The machine may be faster or slower in the next moment: other moments are tried then.
        let hit = [0.5, 0.3, 0.7, 0.15, 0.85, 0.05].into_iter().any(|share| {
            let _ = std::fs::remove_dir_all(&cut);
            let child = start(command(&args).stdout(Stdio::null()).stderr(Stdio::piped()));
            wait_for(&checkpoint(&cut, waits_for));
            std::thread::sleep(gap.mul_f64(share));
            send(&child, "TERM");
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert!([Some(130), Some(0)].contains(&output.status.code()), "{text}");
            // In the evaluation: after its step, with no line of this step yet.
            let in_evaluation = text.contains(&format!("interrupted at step {}", waits_for + 1))
                && !Path::new(&cut).join("metrics.csv").exists();
            if !in_evaluation {
                println!("{share} of {gap:?} was another moment: {text}");
            }
            in_evaluation
        });
        assert!(hit, "no signal came in an evaluation");
        sae_ok(["train", "--resume", &cut, "--quiet"]);
        runs::same_run(Path::new(&whole), Path::new(&cut));
    }
}

#[test]
fn a_signal_in_the_final_evaluation_ends_it_and_the_run_finishes_later_with_the_same_figures() {
    let place = Place::with_data(40_000, 24);
    let options = [
        "--latents=8192",
        "--k=4",
        "--steps=3",
        "--anneal-steps=0",
        "--eval-rows=16",
        "--final-rows=all",
        "--init=linear",
        "--quiet",
    ];
    let data = place.name("data.h5");
    let (whole, cut) = (place.name("whole"), place.name("cut"));
    sae_ok([&["train", &data, "--out", &whole], &options[..]].concat());
    for signal in ["INT", "HUP"] {
        let _ = std::fs::remove_dir_all(&cut);
        let args = [&["train", &data, "--out", &cut], &options[..]].concat();
        let child = start(command(args).stdout(Stdio::null()).stderr(Stdio::piped()));
        wait_for(&place.path("cut/checkpoints/step-000000000003.safetensors"));
        send(&child, signal);
        send(&child, signal);
        let text = interrupted(child);
        assert!(text.contains("all steps are done") && text.contains("--resume"), "{text}");
        assert!(!place.path("cut/summary.json").exists() && !place.path("cut/model.safetensors").exists());
        sae_ok(["train", "--resume", &cut, "--quiet"]);
        let figures = |run: &str| -> serde_json::Value {
            let text = std::fs::read_to_string(format!("{run}/summary.json")).unwrap();
            let mut all: serde_json::Value = serde_json::from_str(&text).unwrap();
            all.as_object_mut().unwrap().remove("rows_per_second");
            all
        };
        assert_eq!(figures(&whole), figures(&cut));
        let model = |run: &str| tensors(&Path::new(run).join("model.safetensors"));
        assert!(model(&whole) == model(&cut));
    }
}

#[test]
fn commands_that_are_interrupted_end_with_130_and_leave_no_file() {
    let place = Place::with_data(40_000, 24);
    let run = model(&place, "--latents=8192");
    let data = place.name("data.h5");
    std::fs::create_dir(place.path("out")).unwrap();
    let labels = place.name("labels.tsv");
    let lines: String =
        (0..40_000).map(|n| format!("id{n:04}\t{}\n", if n % 2 == 0 { "a" } else { "b" })).collect();
    std::fs::write(&labels, format!("id\tkind\n{lines}")).unwrap();
    let out = place.name("out/file");
    for args in [
        vec!["encode", &run, &data, "-o", &out],
        vec!["encode", &run, &data, "-o", &out, "--format=tsv"],
        vec!["features", &run, &data, "-o", &out],
        vec!["report", &run, &data, "-o", &out],
        vec!["overlap", &run, &data, "--labels", &labels, "--column=kind", "--groups=a,b", "--out", &out],
        vec!["export", &run, "--format=saelens", "--data", &data, "-o", &out],
        vec!["eval", &run, &data],
    ] {
        for signal in ["INT", "TERM", "HUP"] {
            // A fast machine may be done before the signal: it comes earlier then.
            let interrupted = [150, 50, 15, 5, 0].into_iter().find_map(|ms| {
                let child = start(command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()));
                wait_for_handlers(&child);
                pause(ms);
                send(&child, signal);
                let output = child.wait_with_output().unwrap();
                if output.status.code() == Some(0) {
                    let _ = std::fs::remove_file(&out);
                    let _ = std::fs::remove_dir_all(&out);
                    return None;
                }
                Some(output)
            });
            let output = interrupted.unwrap_or_else(|| panic!("{args:?} was never interrupted"));
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(130), "{args:?}: {text}");
            assert!(
                text.contains("error: interrupted; nothing was written") && output.stdout.is_empty(),
                "{text}"
            );
            assert_eq!(std::fs::read_dir(place.path("out")).unwrap().count(), 0, "{args:?}");
        }
    }
}
