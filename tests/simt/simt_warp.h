// Warp functions. All lanes that the mask names meet at one place of the sources, whatever ways
// they took; a lane that has ended, waits elsewhere or names another mask is an error, and so is
// reading from a lane outside the mask, which CUDA leaves undefined.
#pragma once

#include <bit>
#include <string>

#include "simt.h"

namespace lte::simt {

template <class T>
struct Shuffle {
  T in, out;
  int from;  // the lane that is read
};

template <class T>
T shuffle(const char* name, Site site, unsigned mask, T value, int from) {
  Shuffle<T> mine{value, value, from};
  warp_meet(
      name, site, mask,
      [](void* const data[32], unsigned lanes) {
        for (int l = 0; l < 32; ++l) {
          if (!(lanes >> l & 1)) continue;
          auto* s = static_cast<Shuffle<T>*>(data[l]);
          if (!(lanes >> s->from & 1)) {
            fault(std::string("lane ") + std::to_string(l) + " reads by a shuffle from lane " +
                  std::to_string(s->from) + ", which takes no part in it");
          }
          s->out = static_cast<Shuffle<T>*>(data[s->from])->in;
        }
      },
      &mine);
  return mine.out;
}

inline int segment(int width) {  // the bits of a lane's number that name its segment
  if (width < 1 || width > 32 || (width & (width - 1))) fault("a shuffle's width is a power of 2");
  return ~(width - 1) & 31;
}

struct Vote {
  bool in;
  unsigned out;
};

// out = the lanes whose `in` is not 0
inline unsigned ballot(const char* name, Site site, unsigned mask, bool predicate) {
  Vote mine{predicate, 0};
  warp_meet(
      name, site, mask,
      [](void* const data[32], unsigned lanes) {
        unsigned set = 0;
        for (int l = 0; l < 32; ++l) {
          if (lanes >> l & 1) set |= unsigned{static_cast<Vote*>(data[l])->in} << l;
        }
        for (int l = 0; l < 32; ++l) {
          if (lanes >> l & 1) static_cast<Vote*>(data[l])->out = set;
        }
      },
      &mine);
  return mine.out;
}

template <class T, class F>
T reduce(const char* name, Site site, unsigned mask, T value, F) {
  struct Term {
    T in, out;
  } mine{value, value};
  warp_meet(
      name, site, mask,
      [](void* const data[32], unsigned lanes) {
        const int first = std::countr_zero(lanes);
        T sum = static_cast<Term*>(data[first])->in;
        for (int l = first + 1; l < 32; ++l) {
          if (lanes >> l & 1) sum = F()(sum, static_cast<Term*>(data[l])->in);
        }
        for (int l = 0; l < 32; ++l) {
          if (lanes >> l & 1) static_cast<Term*>(data[l])->out = sum;
        }
      },
      &mine);
  return mine.out;
}

}  // namespace lte::simt

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       lte::simt::Site site = lte::simt::Site::here()) {
  lte::simt::warp_meet(
      "__syncwarp", site, mask, [](void* const*, unsigned) {}, nullptr);
}

// Who is read from: the PTX definition of shfl.sync, with clamping to segments of `width` lanes.
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32,
              lte::simt::Site site = lte::simt::Site::here()) {
  const int segment = lte::simt::segment(width), me = lte::simt::lane();
  return lte::simt::shuffle("__shfl_sync", site, mask, value,
                            (me & segment) | (from & ~segment & 31));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 lte::simt::Site site = lte::simt::Site::here()) {
  const int segment = lte::simt::segment(width), me = lte::simt::lane();
  const int from = me - static_cast<int>(delta & 31);
  return lte::simt::shuffle("__shfl_up_sync", site, mask, value,
                            from >= (me & segment) ? from : me);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   lte::simt::Site site = lte::simt::Site::here()) {
  const int segment = lte::simt::segment(width), me = lte::simt::lane();
  const int from = me + static_cast<int>(delta & 31), last = (me & segment) | (~segment & 31);
  return lte::simt::shuffle("__shfl_down_sync", site, mask, value, from <= last ? from : me);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  lte::simt::Site site = lte::simt::Site::here()) {
  const int segment = lte::simt::segment(width), me = lte::simt::lane();
  const int from = me ^ (bits & 31), last = (me & segment) | (~segment & 31);
  return lte::simt::shuffle("__shfl_xor_sync", site, mask, value, from <= last ? from : me);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              lte::simt::Site site = lte::simt::Site::here()) {
  return lte::simt::ballot("__ballot_sync", site, mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate,
                      lte::simt::Site site = lte::simt::Site::here()) {
  return lte::simt::ballot("__any_sync", site, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      lte::simt::Site site = lte::simt::Site::here()) {
  return lte::simt::ballot("__all_sync", site, mask, predicate == 0) == 0;
}

// int and unsigned only, as on the device (sm_80).
template <class T>
T __reduce_add_sync(unsigned mask, T value, lte::simt::Site site = lte::simt::Site::here()) {
  static_assert(sizeof(T) == 4 && static_cast<T>(0.5f) == 0);
  return lte::simt::reduce("__reduce_add_sync", site, mask, value,
                           [](T a, T b) { return static_cast<T>(unsigned(a) + unsigned(b)); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, lte::simt::Site site = lte::simt::Site::here()) {
  static_assert(sizeof(T) == 4 && static_cast<T>(0.5f) == 0);
  return lte::simt::reduce("__reduce_max_sync", site, mask, value,
                           [](T a, T b) { return a < b ? b : a; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, lte::simt::Site site = lte::simt::Site::here()) {
  static_assert(sizeof(T) == 4 && static_cast<T>(0.5f) == 0);
  return lte::simt::reduce("__reduce_min_sync", site, mask, value,
                           [](T a, T b) { return b < a ? b : a; });
}
