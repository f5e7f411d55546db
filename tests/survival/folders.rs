//! Who may write into a run folder, and what a run that failed leaves there.

use crate::runs::{SAE, checkpoints, command, sae, sae_fails, sae_ok, start, write_data};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SMALL: [&str; 4] = ["--latents=64", "--k=4", "--steps=50", "--anneal-steps=0"];

#[test]
fn a_live_run_keeps_every_other_process_out_and_a_killed_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("run"));
    write_data(Path::new(&data), 400, 24);
    let long = ["train", &data, "--out", &out, "--latents=64", "--k=4", "--steps=100000000", "--quiet"];
    let mut live = start(command(long).stdout(Stdio::null()));
    while !Path::new(&out).exists() {
        assert!(live.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let config = std::fs::read(Path::new(&out).join("config.toml")).unwrap();
    let fresh = [&["train", &data, "--out", &out][..], &SMALL].concat();
    let overwrite = [&fresh[..], &["--overwrite"]].concat();
    for args in [fresh.clone(), overwrite.clone(), vec!["train", "--resume", &out]] {
        let (status, message) = sae_fails(&args);
        assert!(
            status == 1 && message.contains(&out) && message.contains("another sae process"),
            "{message}"
        );
    }
    assert!(live.try_wait().unwrap().is_none(), "the live run ended");
    assert!(std::fs::read(Path::new(&out).join("config.toml")).unwrap() == config);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "something was left beside the run");
    live.kill().unwrap();
    live.wait().unwrap();
    sae_ok(&overwrite);
    sae_ok(["train", "--resume", &out]);
    assert!(!Path::new(&out).join(".lock").exists(), "the lock file is left");
}

#[test]
fn of_two_runs_that_start_at_once_one_gets_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("run"));
    write_data(Path::new(&data), 400, 24);
    let long = ["train", &data, "--out", &out, "--latents=64", "--k=4", "--steps=100000000", "--overwrite"];
    let mut both = [(); 2].map(|()| start(command(long).stdout(Stdio::null()).stderr(Stdio::null())));
    let (ended, status) = loop {
        let done = both.iter_mut().enumerate().find_map(|(i, c)| c.try_wait().unwrap().map(|s| (i, s)));
        match done {
            Some(done) => break done,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert_eq!(status.code(), Some(1));
    let live = &mut both[1 - ended];
    assert!(live.try_wait().unwrap().is_none(), "both ended");
    live.kill().unwrap();
    live.wait().unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "something was left beside the run");
}

#[test]
fn a_run_that_failed_before_its_first_checkpoint_is_started_over_by_the_same_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("run"));
    write_data(Path::new(&data), 400, 24);
    let fresh = [&["train", &data, "--out", &out][..], &SMALL].concat();
    let wild = [&fresh[..], &["--lr=1e25"]].concat();
    let (status, message) = sae_fails(&wild);
    assert!(status == 1 && message.contains("there was no checkpoint yet"), "{message}");
    // A person's own configuration, or a note, is not ours to replace.
    let config = Path::new(&out).join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, "k = 3\n").unwrap();
    assert_eq!(sae_fails(&fresh).0, 2);
    std::fs::write(&config, text).unwrap();
    std::fs::write(Path::new(&out).join("notes.txt"), "mine").unwrap();
    assert_eq!(sae_fails(&fresh).0, 2);
    std::fs::remove_file(Path::new(&out).join("notes.txt")).unwrap();
    sae_ok(&fresh);
    // Now it has something to keep.
    assert_eq!(sae_fails(&fresh).0, 2);
}

#[test]
fn a_limit_on_the_size_of_files_is_one_line_and_leaves_nothing_unfinished() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("run"));
    write_data(Path::new(&data), 400, 24);
    // Blocks of 512 or 1024 bytes: enough for configuration and splits, not for a checkpoint.
    let script = "ulimit -f 30; exec \"$@\"";
    let mut limited = Command::new("sh");
    limited.args(["-c", script, "sh", SAE, "--quiet", "--device=cpu", "train", &data, "--out", &out]);
    let child = start(limited.args(["--latents=512", "--k=4", "--steps=20"]).stderr(Stdio::piped()));
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.lines().count() == 1 && text.contains("ulimit -f unlimited"), "{text}");
    assert!(text.contains(&format!("`sae train --resume {out}`")), "{text}");
    assert_eq!(std::fs::read_dir(Path::new(&out).join("checkpoints")).unwrap().count(), 0);
    assert!(sae(["train", "--resume", &out]).status.success());
    assert!(!checkpoints(Path::new(&out)).is_empty());
}
