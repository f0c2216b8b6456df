//! Any bytes as a safetensors file, and as an index: refused with an error, or every tensor can be read.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use llmcore::formats::{FileBytes, TensorSource, safetensors};

fuzz_target!(|data: &[u8]| {
    let file = || FileBytes::owned(Path::new("fuzz"), data.to_vec());
    if let Ok(shards) = safetensors::parse_index(&file()) {
        assert!(
            shards
                .keys()
                .all(|shard| Path::new(shard).file_name().is_some_and(|name| name == shard.as_str()))
        );
        return;
    }
    let Ok(opened) = safetensors::from_bytes(file()) else { return };
    for info in opened.tensors.infos() {
        let count = info.rows() * info.row_len();
        assert!(count <= data.len());
        let mut out = vec![0.0; count];
        let read = opened.tensors.read_rows(&info.name, 0..info.rows(), &mut out);
        assert_eq!(read.is_ok(), info.dtype.is_float());
    }
});
