//! Embeddings of tokens and, if learned, of absolute positions.

use crate::blocks::builder::{Builder, DropoutId};
use crate::blocks::pass::{Pass, Rows};
use crate::blocks::spec::EmbedSpec;
use crate::error::Result;
use crate::parameters::{MatrixId, TableId};
use crate::sites::SiteId;

pub struct Embed {
    tokens: MatrixId,
    positions: Option<TableId>,
    width: usize,
    dropout: DropoutId,
    output: SiteId,
}

impl Embed {
    pub fn compile(spec: &EmbedSpec, builder: &mut Builder) -> Result<Self> {
        let rows = builder.size("vocab_size", spec.vocab_size)?;
        let width = builder.size("width", spec.width)?;
        let tokens = builder.matrix(&[("weight".to_owned(), rows)], width);
        let positions = match spec.positions {
            Some(count) => Some(builder.table("positions", builder.size("positions", count)?, width)),
            None => None,
        };
        Ok(Embed { tokens, positions, width, dropout: builder.dropout(), output: builder.site("") })
    }

    /// The matrix that a tied head shares.
    pub fn matrix(&self) -> MatrixId {
        self.tokens
    }

    /// `tokens [rows]` to `[rows, width]`; every token is less than `vocab_size`, every position known.
    pub fn forward(&self, pass: &mut Pass<'_>, tokens: &[u32]) -> Result<Rows> {
        let mut x = pass.take(tokens.len(), self.width);
        let weight = pass.params.matrix(self.tokens);
        for (row, &token) in x.values.chunks_exact_mut(self.width).zip(tokens) {
            weight.row(token as usize, row);
        }
        if let Some(positions) = self.positions {
            for (row, position) in x.values.chunks_exact_mut(self.width).zip(pass.positions()) {
                let embedding = pass.params.table_row(positions, position);
                row.iter_mut().zip(embedding).for_each(|(x, e)| *x += e);
            }
        }
        pass.drop_out(self.dropout, &mut x);
        pass.site(self.output, &x)?;
        Ok(x)
    }

    /// Takes the gradient at what [`Embed::forward`] gave.
    pub fn backward(&self, pass: &mut Pass<'_>, tokens: &[u32], mut dx: Rows) {
        pass.drop_out(self.dropout, &mut dx);
        let positions: Vec<u32> = pass.positions().map(|position| position as u32).collect();
        let sink = pass.sink();
        sink.scatter_to_matrix(self.tokens, tokens, &dx.values);
        if let Some(table) = self.positions {
            sink.scatter(table, &positions, &dx.values);
        }
        pass.give(dx);
    }
}
