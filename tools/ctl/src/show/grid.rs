//! Tables of text.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A column with its name, and on which side its cells are flush.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// Flush left.
    Text(&'static str),
    /// Flush right.
    Number(&'static str),
}

/// A table without lines. Columns that are empty in every row are left out; nothing at all is printed for no rows.
pub fn grid<const N: usize>(columns: [Column; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = rows.into_iter().collect();
    let used: Vec<usize> = (0..N).filter(|&n| rows.iter().any(|row| !row[n].is_empty())).collect();
    if used.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(used.iter().map(|&n| columns[n].name()));
    for mut row in rows {
        table.add_row(used.iter().map(|&n| std::mem::take(&mut row[n])).collect::<Vec<_>>());
    }
    for (column, &n) in table.column_iter_mut().zip(&used) {
        column.set_padding((0, 2));
        if let Column::Number(_) = columns[n] {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// A table with lines around its cells, of at most this width.
pub fn bordered<const N: usize>(
    width: u16,
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_width(width);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    table.to_string() + "\n"
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Column::Text(name) | Column::Number(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_empty_columns_are_left_out() {
        let columns = [Column::Text("reason"), Column::Text("policies"), Column::Number("packets")];
        let rows = [["martian", "", "7"], ["no_route", "", "1234567"]].map(|row| row.map(str::to_owned));
        let expected = "reason    packets\nmartian         7\nno_route  1234567\n";
        assert_eq!(grid(columns, rows), expected);
        assert_eq!(grid(columns, []), "");
    }
}
