//! NVIDIA's compiler, from the active Python environment or the system loader. A machine without it says so and
//! passes; `SAE_REQUIRE_NVRTC=1` makes that a failure, as CI does.

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

/// Files in the wheels of the active Python environment whose names begin with `name`.
fn in_environment(name: &str) -> Vec<PathBuf> {
    let entries =
        |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let Some(environment) = std::env::var_os("VIRTUAL_ENV") else { return vec![] };
    let pythons = entries(PathBuf::from(environment).join("lib"));
    let wheels = pythons.flat_map(|python| entries(python.join("site-packages/nvidia")));
    let files = wheels.flat_map(|wheel| entries(wheel.join("lib")));
    files.filter(|f| f.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))).collect()
}

fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let open = |path: PathBuf| {
        // SAFETY: opening runs the initialisers of NVIDIA's library, which is made to be opened so.
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.ok()
    };
    let find = || {
        // NVRTC 13.0 has no path to find its builtins by.
        in_environment("libnvrtc-builtins.so").into_iter().filter_map(open).for_each(std::mem::forget);
        let names = in_environment("libnvrtc.so").into_iter();
        names.chain(["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"].map(PathBuf::from)).find_map(open)
    };
    LIBRARY.get_or_init(find).as_ref()
}

/// Whether NVRTC is there; says so where it is not.
pub fn nvrtc() -> bool {
    if library().is_some() {
        return true;
    }
    let required = std::env::var("SAE_REQUIRE_NVRTC").is_ok_and(|v| v == "1");
    assert!(
        !required,
        "SAE_REQUIRE_NVRTC=1: `pip install nvidia-cuda-nvrtc` in the active Python environment"
    );
    eprintln!("skipped: NVRTC is missing");
    false
}

/// The PTX of `file`, which may include `header`, for sm_90: each a name and a text.
pub fn ptx(file: (&str, &str), header: (&str, &str)) -> String {
    let text = |text: &str| CString::new(text).unwrap();
    // As the engine compiles: the root only includes the files.
    let (root, root_name) = (text(&format!("#include \"{}\"\n", file.0)), text("kernels"));
    let names = [text(header.0), text(file.0)];
    let bodies = [text(header.1), text(file.1)];
    let options = ["--gpu-architecture=sm_90", "--std=c++17", "-lineinfo"].map(text);
    let (names, bodies) = (names.each_ref().map(|t| t.as_ptr()), bodies.each_ref().map(|t| t.as_ptr()));
    let options = options.each_ref().map(|t| t.as_ptr());
    let library = library().unwrap();
    let mut program = std::ptr::null_mut();
    // SAFETY: the types are those of nvrtc.h. All texts end in a zero byte and outlive the program, which is created
    // here and destroyed once; buffers have the sizes that NVRTC gives.
    unsafe {
        let [size, log_size] = ["nvrtcGetPTXSize\0", "nvrtcGetProgramLogSize\0"]
            .map(|n| *library.get::<Size>(n.as_bytes()).unwrap());
        let [get, get_log] =
            ["nvrtcGetPTX\0", "nvrtcGetProgramLog\0"].map(|n| *library.get::<Text>(n.as_bytes()).unwrap());
        let create = library.get::<Create>(b"nvrtcCreateProgram\0").unwrap();
        let compile = library.get::<Compile>(b"nvrtcCompileProgram\0").unwrap();
        let made =
            create(&mut program, root.as_ptr(), root_name.as_ptr(), 2, bodies.as_ptr(), names.as_ptr());
        assert_eq!(made, 0, "nvrtcCreateProgram");
        let status = compile(program, options.len() as c_int, options.as_ptr());
        let read = |size: Size, get: Text| {
            let mut bytes = 0;
            assert_eq!(size(program, &mut bytes), 0);
            let mut text = vec![0u8; bytes + 1];
            assert_eq!(get(program, text.as_mut_ptr().cast()), 0);
            CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned()
        };
        assert_eq!(status, 0, "{}", read(log_size, get_log));
        let text = read(size, get);
        library.get::<Destroy>(b"nvrtcDestroyProgram\0").unwrap()(&mut program);
        text
    }
}
