// Text for a terminal: aligned columns and a few colours. Colours only where the caller says so (a
// terminal, no NO_COLOR); control characters in what others named never reach the terminal.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace holdfast::cli {

enum class Colour { none, green, yellow, red, dim, bold };

struct Style {
  bool colours = false;

  std::string paint(Colour colour, std::string_view text) const;
};

// `text` with control characters as '?'.
std::string printable(std::string_view text);

// Columns it takes on a terminal, counting code points.
size_t display_width(std::string_view text);

struct Cell {
  std::string text;
  Colour colour = Colour::none;

  Cell(std::string t, Colour c = Colour::none) : text(std::move(t)), colour(c) {}
  Cell(std::string_view t, Colour c = Colour::none) : text(t), colour(c) {}
  Cell(const char* t, Colour c = Colour::none) : text(t), colour(c) {}
};

enum class Align { left, right };

struct Column {
  std::string_view title;
  Align align = Align::left;
};

// Rows under titles. render() prints what was added since the last call and keeps the widths, so
// that a million rows go page by page; the titles come with the first page. No line ends in blanks.
class Table {
 public:
  explicit Table(std::vector<Column> columns);

  void add(std::vector<Cell> row);  // as many cells as there are columns
  std::string render(const Style& style);
  bool empty() const { return rows_.empty(); }

 private:
  void append_row(std::string& out, const std::vector<Cell>& row, const Style& style) const;

  std::vector<Column> columns_;
  std::vector<size_t> widths_;
  std::vector<std::vector<Cell>> rows_;
  bool titles_done_ = false;
};

// "name   value" lines, the names padded to one width. A value may have several lines.
class Facts {
 public:
  void add(std::string_view name, std::string value) {
    lines_.emplace_back(name, std::move(value));
  }
  std::string render(const Style& style) const;

 private:
  std::vector<std::pair<std::string, std::string>> lines_;
};

}  // namespace holdfast::cli
