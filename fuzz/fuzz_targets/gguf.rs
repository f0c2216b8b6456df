//! Any bytes as a GGUF file: refused with an error, or every value and tensor can be read.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use llmcore::formats::{FileBytes, Gguf, TensorSource, Value};

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(FileBytes::owned(Path::new("fuzz"), data.to_vec())) else { return };
    for key in gguf.keys() {
        walk(gguf.get(key).expect("a listed key has a value"));
    }
    let tensors = gguf.tensors();
    for info in tensors.infos() {
        // No type expands to more than 4 * 256 / 84 times its bytes; the reader must have kept to that.
        let count = info.rows() * info.row_len();
        assert!(count <= 4 * data.len());
        let mut out = vec![0.0; count];
        let read = tensors.read_rows(&info.name, 0..info.rows(), &mut out);
        assert_eq!(read.is_ok(), info.dtype.is_float());
    }
});

fn walk(value: Value<'_>) {
    if let Value::Array(array) = value {
        assert_eq!(array.iter().inspect(|item| walk(*item)).count(), array.len());
    }
}
