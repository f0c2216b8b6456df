//! Element types of tensors on disk.

/// Each type: elements of a block, bytes of a block, and its number in GGUF.
macro_rules! dtypes {
    ($($name:ident: $elements:literal in $bytes:literal, ggml $ggml:expr;)*) => {
        /// How a tensor's elements are stored. The names are those of safetensors and of ggml.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DType { $($name),* }

        impl DType {
            pub const ALL: &[DType] = &[$(DType::$name),*];

            pub fn name(self) -> &'static str {
                match self { $(DType::$name => stringify!($name)),* }
            }

            /// Elements of a block and its bytes; plain types have blocks of one element.
            pub fn block(self) -> (usize, usize) {
                match self { $(DType::$name => ($elements, $bytes)),* }
            }

            fn ggml(self) -> Option<u32> {
                match self { $(DType::$name => $ggml),* }
            }
        }
    };
}

dtypes! {
    BOOL: 1 in 1, ggml None;
    U8: 1 in 1, ggml None;
    U16: 1 in 2, ggml None;
    U32: 1 in 4, ggml None;
    U64: 1 in 8, ggml None;
    I8: 1 in 1, ggml Some(24);
    I16: 1 in 2, ggml Some(25);
    I32: 1 in 4, ggml Some(26);
    I64: 1 in 8, ggml Some(27);
    F64: 1 in 8, ggml Some(28);
    F32: 1 in 4, ggml Some(0);
    F16: 1 in 2, ggml Some(1);
    BF16: 1 in 2, ggml Some(30);
    Q4_0: 32 in 18, ggml Some(2);
    Q4_1: 32 in 20, ggml Some(3);
    Q5_0: 32 in 22, ggml Some(6);
    Q5_1: 32 in 24, ggml Some(7);
    Q8_0: 32 in 34, ggml Some(8);
    Q2_K: 256 in 84, ggml Some(10);
    Q3_K: 256 in 110, ggml Some(11);
    Q4_K: 256 in 144, ggml Some(12);
    Q5_K: 256 in 176, ggml Some(13);
    Q6_K: 256 in 210, ggml Some(14);
    IQ4_NL: 32 in 18, ggml Some(20);
    IQ4_XS: 256 in 136, ggml Some(23);
}

impl DType {
    /// By its name in a safetensors header.
    pub fn from_safetensors(name: &str) -> Option<DType> {
        Self::ALL.iter().copied().find(|dtype| dtype.block().0 == 1 && dtype.name() == name)
    }

    /// By its number in a GGUF file.
    pub fn from_ggml(number: u32) -> Option<DType> {
        Self::ALL.iter().copied().find(|dtype| dtype.ggml() == Some(number))
    }

    /// Whether it can be expanded to float32.
    pub fn is_float(self) -> bool {
        self.block().0 > 1 || matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Names of the types that satisfy `wanted`, for errors.
    pub(super) fn list(wanted: impl Fn(DType) -> bool) -> String {
        let names: Vec<_> =
            Self::ALL.iter().filter(|dtype| wanted(**dtype)).map(|dtype| dtype.name()).collect();
        format!("one of {}", names.join(", "))
    }

    pub(super) fn list_safetensors() -> String {
        Self::list(|dtype| dtype.block().0 == 1)
    }

    pub(super) fn list_ggml() -> String {
        Self::list(|dtype| dtype.ggml().is_some())
    }
}
