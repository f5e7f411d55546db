//! Standard output and standard error that are full, closed, or have lost their reader.

use crate::runs::{Place, SAE, command, sae, sae_ok, start};
use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Output, Stdio};

/// A device that is always full; `None` where there is none.
fn full() -> Option<Stdio> {
    let device = File::options().write(true).open("/dev/full");
    if device.is_err() {
        println!("NOT RUN: there is no /dev/full here; full streams are not tested");
    }
    device.ok().map(Stdio::from)
}

fn run_with(args: &[String], stdout: Stdio, stderr: Stdio) -> Output {
    start(command(args).stdout(stdout).stderr(stderr)).wait_with_output().unwrap()
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// Data with a bad row, labels that name an unknown id, and a small run: every command has a warning to give.
fn place() -> Place {
    let place = Place::with_data(300, 16);
    let (data, run) = (place.name("data.h5"), place.name("run"));
    let small = ["--latents=64", "--k=4", "--steps=20", "--anneal-steps=0", "--quiet"];
    sae_ok([&["train", &data, "--out", &run], &small[..]].concat());
    let mut labels = "id\tkind\nnobody\ta\n".to_owned();
    (0..300).for_each(|n| labels += &format!("id{n:04}\t{}\n", if n % 2 == 0 { "a" } else { "b" }));
    std::fs::write(place.path("labels.tsv"), labels).unwrap();
    place
}

/// Every command that ends well, with the files that it makes.
fn commands(place: &Place) -> Vec<Vec<String>> {
    let name = |name: &str| place.name(name);
    let (run, data, labels) = (name("run"), name("data.h5"), name("labels.tsv"));
    [
        vec!["train", &data, "--out", &name("again"), "--steps=20", "--latents=64", "--k=4", "--overwrite"],
        vec!["train", &data, "--dry-run"],
        vec!["train", "--resume", &run],
        vec!["eval", &run, &data],
        vec!["encode", &run, &data, "-o", &name("codes.h5"), "--overwrite"],
        vec!["features", &run, &data, "--labels", &labels],
        vec!["features", &run, &data, "--json"],
        vec!["report", &run, "--labels", &labels, "--overwrite"],
        vec!["overlap", &run, &data, "--labels", &labels, "--column=kind", "--groups=a,b"],
        vec!["compare", &run, &run],
        vec!["export", &run, "--format=openai", "-o", &name("exported"), "--overwrite"],
        vec!["import", &name("exported"), "-o", &name("imported.safetensors"), "--overwrite"],
        vec!["inspect", &data],
        vec!["inspect", &run],
        vec!["devices"],
    ]
    .iter()
    .map(|args| owned(args))
    .collect()
}

#[test]
fn a_full_standard_error_changes_no_status() {
    let place = place();
    for args in commands(&place) {
        let Some(full) = full() else { return };
        let output = run_with(&args, Stdio::piped(), full);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty(), "{args:?}");
    }
    let missing = place.name("missing.h5");
    let data = place.name("data.h5");
    for (args, status) in [
        (vec!["train", "--nonsense"], 2),
        (vec![], 2),
        (vec!["train", &data, "--steps=0"], 2),
        (vec!["inspect", &missing], 1),
        (vec!["eval", &missing, &data], 1),
        (
            vec!["train", &data, "--out", &missing, "--lr=1e25", "--anneal-steps=0", "--latents=64", "--k=4"],
            1,
        ),
    ] {
        let Some(full) = full() else { return };
        assert_eq!(run_with(&owned(&args), Stdio::piped(), full).status.code(), Some(status), "{args:?}");
    }
}

#[test]
fn a_full_standard_output_is_an_error_of_one_line() {
    let place = place();
    let mut all = commands(&place);
    all.extend([owned(&["--help"]), owned(&["train", "--help"]), owned(&["--version"])]);
    for mut args in all {
        let Some(full) = full() else { return };
        if !args.iter().any(|arg| arg == "--help" || arg == "--version") {
            args.push("--quiet".into());
        }
        let output = run_with(&args, full, Stdio::piped());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.starts_with("error: standard output cannot be written: "), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        // Both at once.
        let Some((out, err)) = self::full().zip(self::full()) else { return };
        assert_eq!(run_with(&args, out, err).status.code(), Some(1), "{args:?}");
    }
}

#[test]
fn a_reader_that_has_gone_away_ends_a_command_quietly() {
    let place = place();
    let mut all = commands(&place);
    all.extend([owned(&["--help"]), owned(&["--version"])]);
    for mut args in all {
        if !args.iter().any(|arg| arg == "--help" || arg == "--version") {
            args.push("--quiet".into());
        }
        let mut child = start(command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()));
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(0) && text.is_empty(), "{args:?}: {text}");
    }
    // One that reads a little: more than a pipe holds is left.
    let (run, data) = (place.name("run"), place.name("data.h5"));
    let args = ["features", &run, &data, "--json", "--quiet", "--top=50"];
    let mut child = start(command(args).stdout(Stdio::piped()).stderr(Stdio::piped()));
    child.stdout.take().unwrap().read_exact(&mut [0; 100]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn closed_streams_are_no_panic() {
    let place = place();
    for closed in [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&- >/dev/full"] {
        for args in commands(&place) {
            let script = format!("exec \"$@\" {closed}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, "sh", SAE, "--device=cpu"]).args(&args);
            let status = start(shell.stdout(Stdio::null()).stderr(Stdio::null())).wait().unwrap();
            let wanted = if closed.contains("full") { 1 } else { 0 };
            assert_eq!(status.code(), Some(wanted), "{args:?} {closed}");
        }
    }
}

/// The two ends of a terminal: the one that shows, and the one that programs write to.
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: both places live until the call returns; no name, settings or size are asked for or given.
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(opened, 0, "no terminal can be opened");
    // SAFETY: the call gave two descriptors that nothing else owns.
    unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

#[test]
fn progress_on_a_terminal_that_goes_away_does_not_end_a_run() {
    let place = Place::with_data(300, 16);
    let (data, run) = (place.name("data.h5"), place.name("run"));
    let (screen, stderr) = terminal();
    let args = ["train", &data, "--out", &run, "--latents=256", "--k=4", "--steps=3000", "--batch-size=64"];
    let child = start(command(args).stdout(Stdio::piped()).stderr(Stdio::from(stderr)));
    // The bar was drawn once.
    File::from(screen).read_exact(&mut [0; 20]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!output.stdout.is_empty());
    assert!(sae(["compare", &run]).status.success());
}
