#include "simulation/model.h"

#include <algorithm>
#include <cstring>

namespace extmem::simulation {

namespace {

/// Versions stay below this, so that a word says of which file, cell and version it is.
constexpr unsigned kVersionBits = 32;
constexpr unsigned kCellBits = 16;
constexpr Version kUntouched = UINT64_MAX;

uint64_t word_of(FileId file, uint32_t cell, Version version) {
  return file << (kVersionBits + kCellBits) | uint64_t{cell} << kVersionBits | version;
}

void add(std::vector<PageContent>& contents, const PageContent& content) {
  if (std::find(contents.begin(), contents.end(), content) == contents.end()) contents.push_back(content);
}

/// Those cells of a page that lie in the range; the others kUntouched.
PageContent cells_of_page(CellRange cells, uint32_t page, Version version) {
  PageContent content;
  for (uint32_t at = 0; at < kPageCells; ++at) {
    const uint32_t cell = page * kPageCells + at;
    content[at] = cell >= cells.first && cell < cells.first + cells.count ? version : kUntouched;
  }
  return content;
}

template <typename Visit>
void for_each_page(CellRange cells, Visit visit) {
  for (uint32_t page = cells.first / kPageCells; page <= (cells.first + cells.count - 1) / kPageCells; ++page) {
    visit(page);
  }
}

PageContent overlaid(PageContent content, const PageContent& cells) {
  for (uint32_t at = 0; at < kPageCells; ++at) {
    if (cells[at] != kUntouched) content[at] = cells[at];
  }
  return content;
}

bool agrees(const PageContent& content, const PageContent& read) {
  for (uint32_t at = 0; at < kPageCells; ++at) {
    if (read[at] != kUntouched && read[at] != content[at]) return false;
  }
  return true;
}

std::string describe(const std::vector<PageContent>& contents) {
  std::string text;
  for (const PageContent& content : contents) {
    text += " [";
    for (Version version : content) text += " " + (version == kUntouched ? "-" : std::to_string(version));
    text += " ]";
  }
  return text;
}

}  // namespace

void stamp(FileId file, CellRange cells, Version version, std::span<std::byte> into) {
  for (uint32_t cell = 0; cell < cells.count; ++cell) {
    const uint64_t word = word_of(file, cells.first + cell, version);
    for (uint32_t at = 0; at < kCellBytes; at += sizeof word) {
      std::memcpy(into.data() + cell * kCellBytes + at, &word, sizeof word);
    }
  }
}

bool read_stamp(FileId file, uint32_t cell, std::span<const std::byte> bytes, Version& version) {
  uint64_t word;
  std::memcpy(&word, bytes.data(), sizeof word);
  for (uint32_t at = sizeof word; at < kCellBytes; at += sizeof word) {
    if (std::memcmp(bytes.data() + at, &word, sizeof word) != 0) return false;  // torn
  }
  version = word & ((uint64_t{1} << kVersionBits) - 1);
  return word == 0 || word == word_of(file, cell, version);
}

Model::File& Model::file(FileId id) {
  File& file = files_[id];
  if (file.pages.empty()) file.pages.resize(file_pages_);
  return file;
}

std::vector<Model::Page>& Model::view(ClientId client, FileId id) {
  auto belief = beliefs_.find({client, id});
  return belief != beliefs_.end() ? belief->second.pages : file(id).pages;
}

void Model::overlay(std::vector<PageContent>& contents, const PageContent& cells, bool keep_old) {
  std::vector<PageContent> result;
  if (keep_old) result = contents;
  for (const PageContent& content : contents) add(result, overlaid(content, cells));
  contents = std::move(result);
}

/// From now on some of it may be flushed, and so survive.
void Model::begin_write(ClientId client, FileId id, CellRange cells, Version version) {
  auto& pages = view(client, id);
  for_each_page(cells, [&](uint32_t page) {
    const PageContent written = cells_of_page(cells, page, version);
    for (const PageContent& content : pages[page].now) add(pages[page].durable, overlaid(content, written));
  });
}

void Model::end_write(ClientId client, FileId id, CellRange cells, Version version, bool done) {
  auto& pages = view(client, id);
  for_each_page(cells, [&](uint32_t page) {
    overlay(pages[page].now, cells_of_page(cells, page, version), !done);
    for (const PageContent& content : pages[page].now) add(pages[page].durable, content);
    if (pages[page].now.size() > kMostContents || pages[page].durable.size() > 2 * kMostContents) {
      pages[page] = {.now = {{}}, .durable = {{}}, .anything = true};
    }
  });
  if (auto belief = beliefs_.find({client, id}); belief != beliefs_.end()) {
    belief->second.wrote |= done;
  } else {
    file(id).holders[client] = true;
  }
}

std::string Model::check_read(ClientId client, FileId id, CellRange cells, std::span<const std::byte> data) {
  auto& pages = view(client, id);
  const bool deposed = beliefs_.contains({client, id});
  const auto holder = file(id).holders.find(client);
  std::string wrong;
  for_each_page(cells, [&](uint32_t page) {
    if (!wrong.empty()) return;
    PageContent read;
    read.fill(kUntouched);
    for (uint32_t at = 0; at < kPageCells; ++at) {
      const uint32_t cell = page * kPageCells + at;
      if (cell < cells.first || cell >= cells.first + cells.count) continue;
      const auto bytes = data.subspan((cell - cells.first) * size_t{kCellBytes}, kCellBytes);
      if (!read_stamp(id, cell, bytes, read[at])) {
        wrong =
            "cell " + std::to_string(cell) + " of file " + std::to_string(id) + " holds bytes that nobody wrote there";
        return;
      }
    }
    if (pages[page].anything) return;
    auto& now = pages[page].now;
    std::vector<PageContent> possible;
    for (const PageContent& content : now) {
      if (agrees(content, read)) possible.push_back(content);
    }
    if (possible.empty()) {
      wrong = "page " + std::to_string(page) + " of file " + std::to_string(id) + " was read as" + describe({read}) +
              " by client " + std::to_string(client) + (deposed ? " (deposed)" : "") + ", and may be only" +
              describe(now);
      return;
    }
    now = std::move(possible);
    // It has written nothing: what it read is what the appliances have.
    const bool from_appliances = !deposed && holder != files_[id].holders.end() && !holder->second;
    if (from_appliances) pages[page].durable = now;
  });
  return wrong;
}

std::string Model::check_synced(ClientId client, FileId id) {
  if (auto belief = beliefs_.find({client, id}); belief != beliefs_.end()) {
    if (!belief->second.wrote) return {};
    return "client " + std::to_string(client) + " was told that file " + std::to_string(id) +
           " is durable, after it had lost the file and written to it since";
  }
  for (Page& page : file(id).pages) page.durable = page.now;
  return {};
}

void Model::grant(ClientId client, FileId id) {
  beliefs_.erase({client, id});
  file(id).holders.try_emplace(client, false);
}

void Model::hand_back(ClientId client, FileId id) {
  File& file = this->file(id);
  if (file.holders.erase(client) == 0) return;
  for (Page& page : file.pages) page.durable = page.now;
}

void Model::depose(ClientId client, FileId id) {
  File& file = this->file(id);
  auto holder = file.holders.find(client);
  if (holder == file.holders.end()) return;
  beliefs_[{client, id}] = {.pages = file.pages, .wrote = false};
  const bool wrote = holder->second;
  file.holders.erase(holder);
  if (!wrote) return;
  for (Page& page : file.pages) page.now = page.durable;
}

/// Whatever of it was on its way may still land, until it is fenced.
void Model::crash(ClientId client) {
  for (auto& [id, file] : files_) {
    if (!file.holders.contains(client)) continue;
    file.holders[client] = true;
    for (Page& page : file.pages) page.now = page.durable;
  }
}

}  // namespace extmem::simulation
