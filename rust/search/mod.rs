//! Search over one trait, `Step`; knows nothing of models.
pub mod step;
