//! Tests of `libraries.rs`.

#![allow(clippy::unwrap_used)]

use super::*;

fn place(folder: &Path) -> Place {
    Place { reason: "test".into(), folder: folder.to_owned() }
}

#[test]
fn a_library_that_is_nowhere_is_told_with_its_file_and_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    for (library, file, install) in [
        (Library::Driver, "libcuda.so", "--gpus all"),
        (Library::Nvrtc, "libnvrtc.so", "pip install nvidia-cuda-nvrtc "),
        (Library::Cublas, "libcublas.so", "nvidia-cublas`"),
    ] {
        let text = open_from(library, Some(13), &[place(folder.path())], &|| false).unwrap_err();
        assert!(text.contains(file) && text.contains("1 folders") && text.contains(install), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
    let text = open_from(Library::Nvrtc, Some(12), &[], &|| false).unwrap_err();
    assert!(text.contains("nvidia-cuda-nvrtc-cu12"), "{text}");
}

#[test]
fn a_file_that_is_no_library_is_told_with_its_path_and_the_loaders_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libcublas.so.13");
    std::fs::write(&path, "not a library").unwrap();
    let text = open_from(Library::Cublas, None, &[place(folder.path())], &|| false).unwrap_err();
    assert!(text.contains(&path.display().to_string()) && text.contains("does not open"), "{text}");
    assert!(!text.contains('\n'), "{text}");
}

#[test]
fn the_version_is_read_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("libnvrtc.so.12.4.127");
    std::fs::write(&real, "").unwrap();
    let link = folder.path().join("libnvrtc.so");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    assert_eq!(version_of(&link), Some(12));
    assert_eq!(version_of(Path::new("/nowhere/libcublas.so.13")), Some(13));
    assert_eq!(version_of(Path::new("/nowhere/libcuda.so")), None);
}

#[test]
fn a_library_newer_than_the_driver_is_told_with_both_versions() {
    let driver = Driver { serves: (12, 4), cards: Vec::new() };
    assert_eq!(served(Library::Nvrtc, (12, 9), &driver), Ok(()), "minor versions of one major go together");
    let text = served(Library::Cublas, (13, 5), &driver).unwrap_err();
    assert!(text.contains("too old for cuBLAS 13.5") && text.contains("up to 12.4"), "{text}");
    assert!(text.contains("nvidia-cublas-cu12"), "{text}");
    let text = served(Library::Nvrtc, (11, 8), &driver).unwrap_err();
    assert!(text.contains("NVRTC 11.8 is too old") && text.contains("12.0"), "{text}");
}

#[test]
fn a_card_too_old_is_told_with_its_name_and_capability() {
    let card = Listed { name: "Tesla V100".into(), capability: (7, 0), memory: 1 << 34 };
    let text = card.check(2).unwrap_err();
    assert!(text.contains("cuda:2 (Tesla V100)") && text.contains("7.0") && text.contains("8.0"), "{text}");
    assert_eq!(Listed { capability: (8, 0), ..card.clone() }.check(0), Ok(()));
    assert_eq!(Listed { capability: (12, 0), ..card }.check(0), Ok(()));
}

#[test]
fn a_driver_without_a_device_points_at_what_can_hide_one() {
    let text = refusal(CUresult::CUDA_ERROR_NO_DEVICE);
    assert!(text.contains("no device") && text.contains("CUDA_VISIBLE_DEVICES"), "{text}");
    assert!(refusal(CUresult::CUDA_ERROR_STUB_LIBRARY).contains("stub"));
    assert!(refusal(CUresult::CUDA_ERROR_UNKNOWN).contains("CUDA_ERROR_UNKNOWN"));
}
