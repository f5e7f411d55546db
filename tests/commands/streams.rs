//! Outputs that are pipes, devices, sockets and folders.

use super::outputs::{options, place, refused, with};
use crate::runs::{command, sae, sae_ok, start};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a command while a reader takes what it writes into `fifo`; standard output and what was read.
fn through(fifo: &Path, args: &[String]) -> (String, Vec<u8>) {
    let path = fifo.to_owned();
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![];
        fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    });
    let output = sae(args);
    if !output.status.success() {
        // The reader may wait for a writer still.
        drop(fs::File::options().read(true).write(true).open(fifo));
        panic!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    (String::from_utf8(output.stdout).unwrap(), reader.join().unwrap())
}

#[test]
fn a_fifo_is_written_into_and_stays() {
    let place = place();
    let fifo = place.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    symlink("fifo", place.path("link")).unwrap();
    let is_fifo = || fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo();
    for (args, flag) in options(&place) {
        let file = place.path("file");
        let _ = fs::remove_file(&file);
        sae_ok(with(&args, flag, &file, &[]));
        for path in ["fifo", "link"] {
            let (_, read) = through(&fifo, &with(&args, flag, &place.path(path), &[]));
            // HDF5 notes the time.
            let file = fs::read(&file).unwrap();
            assert!(
                read == file || (read.len() == file.len() && args[0] == "encode"),
                "{args:?}: other bytes"
            );
            assert!(is_fifo(), "{args:?}: the FIFO was replaced");
        }
    }
    let h5 = place.path("back.h5");
    let (_, read) = through(&fifo, &with(&options(&place)[0].0, "--out", &fifo, &[]));
    fs::write(&h5, read).unwrap();
    assert_eq!(hdf5::File::open(&h5).unwrap().dataset("ids").unwrap().size(), 300);
}

#[test]
fn a_character_device_is_written_into_and_stays() {
    let place = place();
    let device = place.path("null");
    // A null device of our own: a fault here must not hurt the machine's.
    let made = Command::new("mknod").arg(&device).args(["c", "1", "3"]).output();
    if !made.is_ok_and(|output| output.status.success())
        || fs::File::options().write(true).open(&device).is_err()
    {
        println!("NOT RUN: this user may not make devices; outputs that are devices are not tested here");
        return;
    }
    for (args, flag) in options(&place) {
        for more in [&[][..], &["--overwrite"]] {
            sae_ok(with(&args, flag, &device, more));
            assert!(fs::symlink_metadata(&device).unwrap().file_type().is_char_device(), "{args:?}");
        }
    }
}

#[test]
fn what_goes_to_standard_output_is_the_file_and_nothing_else() {
    let place = place();
    for (args, flag) in options(&place) {
        let file = place.path("file");
        let _ = fs::remove_file(&file);
        sae_ok(with(&args, flag, &file, &[]));
        let want = fs::read(&file).unwrap();
        let same = |got: &[u8]| got == want || (args[1..].len() == 2 && got.len() == want.len());
        for path in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
            let output = sae(with(&args, flag, Path::new(path), &[]));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && same(&output.stdout), "{args:?} {path}: {said}");
        }
        // Standard output is a file, and the shell has made it already.
        let redirected = fs::File::create(place.path("redirected")).unwrap();
        let args = with(&args, flag, Path::new("/dev/stdout"), &["--quiet"]);
        let status = start(command(&args).stdout(redirected).stderr(Stdio::null())).wait().unwrap();
        assert!(status.success() && same(&fs::read(place.path("redirected")).unwrap()), "{args:?}");
    }
}

#[test]
fn what_is_no_file_to_write_into_is_refused_by_name() {
    let place = place();
    fs::create_dir(place.path("folder")).unwrap();
    let socket = place.path("socket");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let disk = place.path("disk");
    let made = Command::new("mknod").arg(&disk).args(["b", "7", "255"]).output();
    let made = made.is_ok_and(|output| output.status.success());
    if !made {
        println!(
            "NOT RUN: this user may not make devices; outputs that are block devices are not tested here"
        );
    }
    for (args, flag) in options(&place) {
        for (name, word) in
            [("folder", "folder"), ("socket", "socket"), ("disk", "block device"), ("new/", "folder")]
        {
            if name != "disk" || made {
                refused(&with(&args, flag, &place.path(name), &["--overwrite"]), &[flag, name, word]);
            }
        }
    }
    assert!(socket.symlink_metadata().unwrap().file_type().is_socket());
}

#[test]
fn labels_may_come_through_a_fifo() {
    let place = place();
    let (fifo, out) = (place.path("fifo"), place.path("out"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fs::write(&out, "old").unwrap();
    let labels = fs::read(place.path("labels.tsv")).unwrap();
    let path = fifo.clone();
    let writer = std::thread::spawn(move || fs::write(path, labels));
    let args = ["features", &place.name("run"), &place.name("data.h5"), "--labels", fifo.to_str().unwrap()];
    // The check of what would be replaced must not take the labels.
    sae_ok(with(&args.map(str::to_owned), "--out", &out, &["--overwrite"]));
    writer.join().unwrap().unwrap();
    assert_ne!(fs::read(&out).unwrap(), b"old");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = place();
    let mut commands: Vec<Vec<String>> =
        options(&place).iter().map(|(args, flag)| with(args, flag, Path::new("/dev/stdout"), &[])).collect();
    commands.push(["features".to_owned(), place.name("run"), place.name("data.h5")].to_vec());
    for args in commands {
        let mut child = start(command(&args).arg("--quiet").stdout(Stdio::piped()).stderr(Stdio::piped()));
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{args:?}: {said}");
    }
}
