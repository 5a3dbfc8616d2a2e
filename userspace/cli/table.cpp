#include "userspace/cli/table.hpp"

#include <algorithm>

#include "userspace/base/check.hpp"

namespace holdfast::cli {
namespace {

constexpr size_t gap = 2;  // blanks between columns

std::string_view sequence(Colour colour) {
  switch (colour) {
    case Colour::green: return "\x1b[32m";
    case Colour::yellow: return "\x1b[33m";
    case Colour::red: return "\x1b[31m";
    case Colour::dim: return "\x1b[2m";
    case Colour::bold: return "\x1b[1m";
    case Colour::none: break;
  }
  return {};
}

}  // namespace

std::string Style::paint(Colour colour, std::string_view text) const {
  if (!colours || colour == Colour::none || text.empty()) return std::string(text);
  return std::string(sequence(colour)).append(text).append("\x1b[0m");
}

std::string printable(std::string_view text) {
  std::string out(text);
  for (size_t i = 0; i < out.size(); ++i) {
    const auto byte = static_cast<unsigned char>(out[i]);
    if (byte < 0x20 || byte == 0x7f) out[i] = '?';
    // U+0080 to U+009F are control characters as well, to terminals that still know them.
    if (byte == 0xc2 && i + 1 < out.size() && static_cast<unsigned char>(out[i + 1]) < 0xa0) {
      out[i] = '?';
      out.erase(i + 1, 1);
    }
  }
  return out;
}

size_t display_width(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {
  for (const Column& column : columns_) widths_.push_back(column.title.size());
}

void Table::add(std::vector<Cell> row) {
  CHECK(row.size() == columns_.size());
  for (size_t i = 0; i < row.size(); ++i) {
    row[i].text = row[i].text.empty() ? "-" : printable(row[i].text);
    widths_[i] = std::max(widths_[i], display_width(row[i].text));
  }
  rows_.push_back(std::move(row));
}

void Table::append_row(std::string& out, const std::vector<Cell>& row, const Style& style) const {
  for (size_t i = 0; i < row.size(); ++i) {
    const size_t padding = widths_[i] - display_width(row[i].text);
    const bool last = i + 1 == row.size();
    if (columns_[i].align == Align::right) out.append(padding, ' ');
    out += style.paint(row[i].colour, row[i].text);
    if (last) break;
    if (columns_[i].align == Align::left) out.append(padding, ' ');
    out.append(gap, ' ');
  }
  out += '\n';
}

std::string Table::render(const Style& style) {
  std::string out;
  if (rows_.empty()) return out;
  if (!titles_done_) {
    std::vector<Cell> titles;
    titles.reserve(columns_.size());
    for (const Column& column : columns_) titles.emplace_back(column.title, Colour::bold);
    append_row(out, titles, style);
    titles_done_ = true;
  }
  for (const std::vector<Cell>& row : rows_) append_row(out, row, style);
  rows_.clear();
  return out;
}

std::string Facts::render(const Style& style) const {
  size_t width = 0;
  for (const auto& [name, value] : lines_) width = std::max(width, display_width(name));
  std::string out;
  for (const auto& [name, value] : lines_) {
    std::string_view rest = value;
    std::string_view label = name;
    do {
      const size_t end = rest.find('\n');
      out += style.paint(Colour::dim, label);
      out.append(width - display_width(label) + gap, ' ');
      // Values may hold colours of ours, so they were made printable where they were put together.
      out.append(rest.substr(0, end)) += '\n';
      rest = end == rest.npos ? std::string_view() : rest.substr(end + 1);
      label = {};
    } while (!rest.empty());
  }
  return out;
}

}  // namespace holdfast::cli
