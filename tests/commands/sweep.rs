//! `sae sweep`: the runs of a grid, each to the bits of its own `sae train`.

use super::Place;
use crate::runs::{checkpoints, command, sae, sae_fails, sae_ok, same_run, start};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

const COMMON: [&str; 4] = ["--steps=40", "--batch-size=64", "--anneal-steps=10", "--latents=32"];

fn sweep<'a>(place: &'a Place, out: &'a str, more: &[&'a str]) -> Vec<String> {
    let mut args = vec!["sweep".to_owned(), place.name("data.h5"), "--out".into(), place.name(out)];
    args.extend(COMMON.iter().chain(more).map(|s| (*s).to_owned()));
    args
}

fn written(run: &Path) -> SystemTime {
    run.join("model.safetensors").metadata().unwrap().modified().unwrap()
}

#[test]
fn each_run_is_that_of_its_own_training_and_the_same_command_goes_on() {
    let place = Place::with_data(300, 16);
    let grid = ["--k=3,6", "--seed=0,1", "--memory=9K", "--quiet"];
    let told = sae_ok(sweep(&place, "sweep", &grid));
    let names = ["k=3,seed=0", "k=3,seed=1", "k=6,seed=0", "k=6,seed=1"];
    for name in names {
        assert!(told.contains(name), "{told}");
        let [k, seed] = name.split(',').collect::<Vec<_>>()[..] else { panic!() };
        let (data, single) = (place.name("data.h5"), place.name(&format!("single {name}")));
        let own = [format!("--{k}"), format!("--{seed}")];
        let args =
            [&["train", &data, "--out", &single, "--memory=9K", &own[0], &own[1]], &COMMON[..]].concat();
        sae_ok(args);
        same_run(Path::new(&single), &place.path("sweep").join(name));
    }
    assert!(place.path("sweep/frontier.png").is_file());
    // One that is done is left alone, one that lost its end goes on, one that is gone starts again.
    let member = |name: &str| place.path("sweep").join(name);
    let before = written(&member(names[0]));
    std::fs::remove_file(member(names[1]).join("summary.json")).unwrap();
    std::fs::remove_file(member(names[1]).join("model.safetensors")).unwrap();
    std::fs::remove_dir_all(member(names[2])).unwrap();
    let rows: serde_json::Value =
        serde_json::from_str(&sae_ok(sweep(&place, "sweep", &[&grid[..], &["--json"]].concat()))).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 4);
    assert_eq!(written(&member(names[0])), before);
    for name in names {
        same_run(&place.path(&format!("single {name}")), &member(name));
    }
    // More values are more runs.
    sae_ok(sweep(&place, "sweep", &["--k=3,6", "--seed=0,1,2", "--memory=9K", "--quiet"]));
    assert!(member("k=6,seed=2").join("summary.json").is_file() && written(&member(names[0])) == before);
}

/// Bytes that `sae` reads from files with these arguments; `None` where the system does not count them.
fn bytes_read(args: Vec<String>) -> Option<u64> {
    // A process is charged with what its children read.
    let script = "\"$0\" \"$@\" >/dev/null || exit 1; cat /proc/$$/io";
    let mut shell = std::process::Command::new("bash");
    let output = shell.args(["-c", script, crate::runs::SAE]).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
}

#[test]
fn runs_of_one_order_read_their_rows_once_for_all() {
    let place = Place::with_data(8000, 64);
    let all = [
        "--k=2,3,4,6,8",
        "--steps=500",
        "--batch-size=64",
        "--memory=200K",
        "--latents=16",
        "--final-rows=200",
        "--early-stop=0",
        "--quiet",
    ];
    let with = |out: &str, options: &[&str]| {
        let mut args = vec!["sweep".to_owned(), place.name("data.h5"), "--out".into(), place.name(out)];
        args.extend(options.iter().map(|s| (*s).to_owned()));
        args
    };
    let one = bytes_read(with("one", &[&["--k=2"], &all[1..]].concat()));
    let (Some(one), Some(five)) = (one, bytes_read(with("five", &all))) else {
        println!("NOT RUN: this system does not count what a process reads");
        return;
    };
    // Five epochs of 2 MB. Checkpoints and models are read too, by each run.
    assert!(one > 10_000_000 && five < 2 * one, "{one} bytes for one run, {five} for five");
    same_run(&place.path("one/run"), &place.path("five/k=2"));
}

#[test]
fn runs_that_take_turns_go_on_to_the_same_bits_after_a_kill() {
    let place = Place::with_data(4000, 16);
    let grid =
        ["--k=2,4,8", "--memory=64K", "--steps=900", "--early-stop=0", "--checkpoint-every=20", "--quiet"];
    sae_ok(sweep(&place, "whole", &grid));
    let mut child = start(command(sweep(&place, "hurt", &grid)).stdout(Stdio::null()));
    // The last of them has begun to train, and so have all.
    let last = place.path("hurt/k=8");
    while !last.exists() || checkpoints(&last).is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.path("hurt/k=8/summary.json").exists());
    sae_ok(sweep(&place, "hurt", &grid));
    for k in [2, 4, 8] {
        same_run(&place.path(&format!("whole/k={k}")), &place.path(&format!("hurt/k={k}")));
    }
}

#[test]
fn a_run_that_fails_does_not_stop_the_others() {
    let place = Place::with_data(300, 16);
    let output = sae(sweep(&place, "sweep", &["--k=4", "--lr=0.001,1e30,0.002"]));
    let (told, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(told.contains("lr=0.001") && told.contains("lr=0.002") && !told.contains("lr=1e30"), "{told}");
    assert!(errors.contains("warning: lr=1e30: the loss became"), "{errors}");
    assert!(errors.contains("error: 1 of 3 runs failed, the first lr=1e30: "), "{errors}");
}

#[test]
fn what_a_sweep_cannot_be_is_said_before_anything_is_written() {
    let place = Place::with_data(300, 16);
    sae_ok(sweep(&place, "sweep", &["--k=3,4", "--quiet"]));
    let (status, text) = sae_fails(sweep(&place, "sweep", &["--k=3,4", "--tied"]));
    assert!(status == 2 && text.contains("other common options"), "{text}");
    std::fs::create_dir(place.path("mine")).unwrap();
    std::fs::write(place.path("mine/notes.txt"), "mine").unwrap();
    let (status, text) = sae_fails(sweep(&place, "mine", &["--k=3,4"]));
    assert!(status == 2 && text.contains("holds something else than a sweep"), "{text}");
    assert_eq!(std::fs::read_dir(place.path("mine")).unwrap().count(), 1);
    let output = sae(sweep(&place, "none", &["--k=3,x"]));
    assert_eq!(output.status.code(), Some(2));
    // Ranges too, though each run would find it.
    let (status, text) = sae_fails(sweep(&place, "none", &["--adam-b1=0.5,2"]));
    assert!(status == 2 && text.contains("adam-b1"), "{text}");
    assert!(!place.path("none").exists());
}

#[test]
fn a_path_that_no_configuration_can_name_is_refused_before_loading() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let place = Place::with_data(300, 16);
    let data = place.folder.path().join(OsString::from_vec(b"rows\xff.h5".to_vec()));
    std::fs::rename(place.path("data.h5"), &data).unwrap();
    let out = place.path("sweep").into_os_string();
    let args: [OsString; 5] = ["sweep".into(), data.into(), "--out".into(), out, "--k=3,4".into()];
    let (status, text) = sae_fails(args);
    assert!(status == 2 && text.contains("this path is not UTF-8") && text.contains("ln -s"), "{text}");
    assert!(!place.path("sweep").exists());
}
