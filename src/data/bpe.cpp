#include "data/bpe.h"

#include <algorithm>
#include <queue>

namespace lte {
namespace {

constexpr size_t kMaxPiece = 64;

enum class Kind { space, letter, digit, mark };

Kind kind_of(char c) {
  const auto b = static_cast<unsigned char>(c);
  if (b == ' ' || (b >= '\t' && b <= '\r')) return Kind::space;
  if (b >= '0' && b <= '9') return Kind::digit;
  if (b >= 128 || (b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z')) return Kind::letter;
  return Kind::mark;
}

uint64_t key_of(int32_t a, int32_t b) {
  return static_cast<uint64_t>(a) << 32 | static_cast<uint32_t>(b);
}

struct Piece {
  std::vector<int32_t> ids;
  int64_t count;
};

struct Pair {
  int64_t count = 0;
  std::vector<size_t> pieces;  // where it occurs, or occurred: checked when it is merged
};

struct Candidate {
  int64_t count;
  uint64_t key;
  bool operator<(const Candidate& o) const {
    return count != o.count ? count < o.count : key > o.key;
  }
};

std::vector<Piece> count_pieces(std::string_view text) {
  std::unordered_map<std::string_view, size_t> index;
  std::vector<Piece> pieces;
  for (size_t at = 0; at < text.size();) {
    const size_t end = piece_end(text, at);
    const auto piece = text.substr(at, end - at);
    const auto [it, is_new] = index.try_emplace(piece, pieces.size());
    if (is_new) {
      pieces.push_back({{}, 0});
      for (char c : piece) pieces.back().ids.push_back(static_cast<unsigned char>(c));
    }
    ++pieces[it->second].count;
    at = end;
  }
  return pieces;
}

// Replaces every (a, b), from the left, by `id`. False if there was none.
bool merge_in(std::vector<int32_t>& ids, int32_t a, int32_t b, int32_t id) {
  size_t out = 0;
  for (size_t i = 0; i < ids.size(); ++i, ++out) {
    const bool hit = ids[i] == a && i + 1 < ids.size() && ids[i + 1] == b;
    ids[out] = hit ? id : ids[i];
    i += hit;
  }
  const bool changed = out != ids.size();
  ids.resize(out);
  return changed;
}

// Counts of pairs, kept up to date while merges are made; the heap's counts may be too high.
struct PairTable {
  std::vector<Piece> pieces;
  std::unordered_map<uint64_t, Pair> pairs;
  std::priority_queue<Candidate> heap;

  void count(size_t piece, int64_t sign) {
    const Piece& p = pieces[piece];
    for (size_t i = 0; i + 1 < p.ids.size(); ++i) {
      Pair& pair = pairs[key_of(p.ids[i], p.ids[i + 1])];
      pair.count += sign * p.count;
      if (sign > 0 && (pair.pieces.empty() || pair.pieces.back() != piece)) {
        pair.pieces.push_back(piece);
      }
    }
  }

  // Only pairs with the new id can have grown: just they are put on the heap again.
  void merge(uint64_t key, int32_t id) {
    const auto a = static_cast<int32_t>(key >> 32), b = static_cast<int32_t>(key);
    const std::vector<size_t> where = std::move(pairs[key].pieces);
    std::vector<uint64_t> grown;
    for (size_t piece : where) {
      std::vector<int32_t> merged = pieces[piece].ids;
      if (!merge_in(merged, a, b, id)) continue;
      count(piece, -1);
      pieces[piece].ids = std::move(merged);
      count(piece, +1);
      const auto& ids = pieces[piece].ids;
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        if (ids[i] == id || ids[i + 1] == id) grown.push_back(key_of(ids[i], ids[i + 1]));
      }
    }
    for (uint64_t k : grown) heap.push({pairs[k].count, k});
  }
};

}  // namespace

size_t piece_end(std::string_view text, size_t at) {
  const size_t limit = std::min(text.size(), at + kMaxPiece);
  size_t i = at;
  if (text[i] == '\n') return at + 1;
  if (kind_of(text[i]) == Kind::space) {
    while (i < limit && text[i] != '\n' && kind_of(text[i]) == Kind::space) ++i;
    const bool word_follows = i < limit && kind_of(text[i]) != Kind::space && text[i - 1] == ' ';
    if (!word_follows) return i;
    if (i - at > 1) return i - 1;  // the last space belongs to the word
  }
  const Kind kind = kind_of(text[i]);
  while (i < limit && kind_of(text[i]) == kind) ++i;
  return i;
}

void train_bpe(Tokenizer& t, std::string_view text, int size) {
  PairTable table{count_pieces(text), {}, {}};
  for (size_t i = 0; i < table.pieces.size(); ++i) table.count(i, +1);
  for (const auto& [key, pair] : table.pairs) table.heap.push({pair.count, key});
  while (static_cast<int>(t.vocab.size()) < size && !table.heap.empty()) {
    const Candidate best = table.heap.top();
    table.heap.pop();
    const int64_t now = table.pairs[best.key].count;
    if (now < best.count) {
      if (now > 1) table.heap.push({now, best.key});
      continue;
    }
    if (now < 2) break;
    const auto a = static_cast<int32_t>(best.key >> 32), b = static_cast<int32_t>(best.key);
    const auto id = static_cast<int32_t>(t.vocab.size());
    const std::string bytes = t.vocab[a] + t.vocab[b];
    if (!t.ids.try_emplace(bytes, id).second) continue;  // the same bytes have an id already
    t.vocab.push_back(bytes);
    t.merges.emplace_back(a, b);
    table.merge(best.key, id);
  }
}

std::vector<int32_t> encode_bpe(const Tokenizer& t, std::string_view text) {
  std::unordered_map<uint64_t, int32_t> ranks;
  for (size_t i = 0; i < t.merges.size(); ++i) {
    ranks[key_of(t.merges[i].first, t.merges[i].second)] = static_cast<int32_t>(i);
  }
  std::unordered_map<std::string_view, std::vector<int32_t>> cache;
  std::vector<int32_t> out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = piece_end(text, at);
    const auto piece = text.substr(at, end - at);
    const auto [it, is_new] = cache.try_emplace(piece);
    std::vector<int32_t>& ids = it->second;
    if (is_new) {
      for (char c : piece) ids.push_back(static_cast<unsigned char>(c));
      for (;;) {
        int32_t first = INT32_MAX;
        for (size_t i = 0; i + 1 < ids.size(); ++i) {
          const auto rank = ranks.find(key_of(ids[i], ids[i + 1]));
          if (rank != ranks.end()) first = std::min(first, rank->second);
        }
        if (first == INT32_MAX) break;
        merge_in(ids, t.merges[first].first, t.merges[first].second, 256 + first);
      }
    }
    out.insert(out.end(), ids.begin(), ids.end());
    at = end;
  }
  return out;
}

}  // namespace lte
