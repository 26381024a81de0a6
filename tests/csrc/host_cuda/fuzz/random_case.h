// Random inputs for a fuzzed kernel: sizes, strides, alignments and values, and what the results are held to.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(at, bytes) ((void)(at), (void)(bytes))
#define __asan_unpoison_memory_region(at, bytes) ((void)(at), (void)(bytes))
#endif

#include "core/dtype.h"
#include "expect.h"
#include "sample.h"

namespace bimkern {

// first to last, both included.
inline int64_t pick(int64_t first, int64_t last) {
  return first + static_cast<int64_t>(random_bits()() % static_cast<uint64_t>(last - first + 1));
}

inline bool chance(int percent) { return pick(1, 100) <= percent; }

template <typename T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[pick(0, static_cast<int64_t>(values.size()) - 1)];
}

// A directed case: all that a kernel asks the alignment of is aligned, but for one shift or gap. Random cases break
// several at once, and hardly ever a single one.
struct Directed {
  bool on = false;
  int broken = 0;  // which shift or gap, in the order of asking
  int asked = 0;
};

inline Directed& directed() {
  static Directed one;
  return one;
}

// Elements to shift a buffer by, or to leave between rows, channels or images. Kernels read packets of up to 64 bytes:
// whole packets, parts of one, and single elements differ.
inline int64_t random_gap() {
  if (directed().on) {
    return directed().asked++ == directed().broken ? 1 : 0;
  }
  return chance(65) ? 0 : chance(50) ? one_of<int64_t>({2, 4, 8, 16}) : pick(1, 15);
}

// The stride of what takes `extent` elements. Directed, it is a whole number of packets before the gap, so that a gap
// inside does not show in the strides around it.
inline int64_t random_stride(int64_t extent) {
  constexpr int64_t kWhole = 64;
  return (directed().on ? (extent + kWhole - 1) / kWhole * kWhole : extent) + random_gap();
}

// Whether a case has an input that may be left out.
inline bool has_optional() { return directed().on || chance(70); }

// Memory that ends with its last element, `shift` elements behind a boundary of 64 bytes. It starts as NaN.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count, int64_t shift = 0)
      : count_(count),
        capacity_((static_cast<size_t>(count + shift) * sizeof(T) + 1 + kAlignment - 1) / kAlignment * kAlignment) {
    memory_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, capacity_)), Free{capacity_});
    data_ = reinterpret_cast<T*>(memory_.get()) + shift;
    std::memset(memory_.get(), 0xff, capacity_);
    char* const end = reinterpret_cast<char*>(data_ + count);
    __asan_poison_memory_region(memory_.get(), shift * sizeof(T));
    __asan_poison_memory_region(end, memory_.get() + capacity_ - end);
  }

  T* data() const { return data_; }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr size_t kAlignment = 64;

  struct Free {
    size_t bytes;
    void operator()(char* memory) const {
      __asan_unpoison_memory_region(memory, bytes);
      std::free(memory);
    }
  };

  int64_t count_;
  size_t capacity_;
  std::shared_ptr<char> memory_;
  T* data_;
};

template <typename T>
T random_value() {
  static std::normal_distribution<float> normal;
  if constexpr (std::is_same_v<T, uint8_t>) {
    return static_cast<uint8_t>(random_bits()() % 256);
  } else {
    const float value = chance(98) ? normal(random_bits()) : one_of({0.0f, -0.0f, 1e-7f, 6e4f, 3e-41f});
    return Arithmetic<T>::store(static_cast<typename Arithmetic<T>::type>(value));
  }
}

template <typename T>
Buffer<T> random_buffer(int64_t count, int64_t shift = 0) {
  const Buffer<T> buffer(count, shift);
  for (int64_t i = 0; i < count; ++i) {
    buffer[i] = random_value<T>();
  }
  return buffer;
}

// Elements from the first to the last of [images, rows, width].
inline int64_t extent(int64_t images, int64_t image_stride, int64_t rows, int64_t row_stride, int64_t width) {
  return images == 0 || rows == 0 || width == 0 ? 0 : (images - 1) * image_stride + (rows - 1) * row_stride + width;
}

// [images, rows, width] with gaps between rows and between images, which must stay untouched. A gap between images
// alone breaks packets where all rows of one image keep them.
template <typename T>
struct Rows {
  int64_t images, rows, width, row_stride, image_stride;
  Buffer<T> buffer;

  Rows(int64_t to_images, int64_t to_rows, int64_t to_width)
      : images(to_images),
        rows(to_rows),
        width(to_width),
        row_stride(random_stride(width)),
        image_stride(random_stride(rows * row_stride)),
        buffer(random_buffer<T>(extent(images, image_stride, rows, row_stride, width), random_gap())) {
    for (int64_t i = 0; i + 1 < images * rows && width > 0; ++i) {
      __asan_poison_memory_region(&buffer[start(i) + width], (start(i + 1) - start(i) - width) * sizeof(T));
    }
  }

  T* data() const { return buffer.data(); }

 private:
  int64_t start(int64_t row) const { return row / rows * image_stride + row % rows * row_stride; }
};

inline TokenSizes random_size() {
  if (directed().on) {
    return {3, 1, 12, 5, 64};
  }
  TokenSizes size{};
  size.images = chance(70) ? pick(1, 5) : chance(80) ? pick(20, 150) : 0;
  size.prefix = pick(0, 3);
  size.tokens = size.images > 5 ? pick(0, 30) : chance(60) ? pick(1, 40) : pick(0, 256);
  size.kept = chance(15) ? 0 : chance(15) ? size.tokens : pick(0, size.tokens);
  size.width = chance(40) ? pick(1, 40) : chance(60) ? 8 * pick(1, 20) : pick(0, size.images > 5 ? 50 : 1100);
  return size;
}

// Ids of the kept tokens, with strides of their own.
struct Ids {
  Buffer<int64_t> buffer;
  Keep keep;

  explicit Ids(const TokenSizes& size) : buffer(0) {
    const int64_t token_stride = chance(70) ? 1 : pick(2, 3);
    const int64_t image_stride = size.kept * token_stride + (chance(70) ? 0 : pick(1, 5));
    buffer = Buffer<int64_t>(extent(size.images, image_stride, size.kept, token_stride, 1));
    const std::vector<int64_t> values = unordered_ids(size);
    for (int64_t i = 0; i < size.images * size.kept; ++i) {
      buffer[i / size.kept * image_stride + i % size.kept * token_stride] = values[i];
    }
    keep = Keep{buffer.data(), image_stride, token_stride};
  }

  struct Repeated {
    int64_t image, token;
  };

  // Keeps a token of an image twice; image -1: fewer than two are kept.
  Repeated repeat(const TokenSizes& size) const {
    if (size.images == 0 || size.kept < 2) {
      return {-1, -1};
    }
    const int64_t image = pick(0, size.images - 1);
    int64_t* ids = &buffer[image * keep.image_stride];
    const int64_t token = ids[pick(1, size.kept - 1) * keep.token_stride] = ids[0];
    return {image, token};
  }

  // Puts an id out of range where one is kept, and returns its image; -1: none is kept. No kernel may follow it.
  int64_t spoil(const TokenSizes& size) const {
    if (size.images == 0 || size.kept == 0) {
      return -1;
    }
    const int64_t image = pick(0, size.images - 1);
    const int64_t at = image * keep.image_stride + pick(0, size.kept - 1) * keep.token_stride;
    buffer[at] = one_of<int64_t>({-1, size.tokens, int64_t{1} << 62, INT64_MIN});
    return image;
  }
};

inline std::string text_of(const TokenSizes& size) {
  return message("B=", size.images, " R=", size.prefix, " N=", size.tokens, " K=", size.kept, " D=", size.width);
}

// ---- what results are held to ---------------------------------------------------------------------------------------
inline std::string& current_case() {
  static std::string text;
  return text;
}

inline void mismatch(const std::string& what) {
  std::fprintf(stderr, "MISMATCH %s: %s\n", what.c_str(), current_case().c_str());
  ++failures();
}

template <typename T>
double as_double(T value) {
  return static_cast<double>(Arithmetic<T>::load(value));
}

// Equal bits; what NaN carries is free.
template <typename T>
void expect_same(const Buffer<T>& got, const Buffer<T>& want, const char* what) {
  for (int64_t i = 0; i < want.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], sizeof(T)) != 0 &&
        !(std::isnan(as_double(got[i])) && std::isnan(as_double(want[i])))) {
      return mismatch(message(what, " at ", i, " of ", want.size()));
    }
  }
}

// NaN everywhere from begin to end, or, with `once`, somewhere.
template <typename T>
void expect_nan(const Buffer<T>& got, int64_t begin, int64_t end, bool once, const char* what) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) {
    count += std::isnan(as_double(got[i])) ? 1 : 0;
  }
  if (begin < end && (once ? count == 0 : count < end - begin)) {
    mismatch(message(what, ": ", count, " NaN from ", begin, " to ", end));
  }
}

// |got - want| <= relative * |want| + absolute, NaN where NaN is wanted.
template <typename T>
void expect_near(const Buffer<T>& got, const Buffer<T>& want, double relative, double absolute, const char* what) {
  for (int64_t i = 0; i < want.size(); ++i) {
    const double a = as_double(got[i]);
    const double b = as_double(want[i]);
    if (a != b && !(std::isnan(a) && std::isnan(b)) && !(std::abs(a - b) <= relative * std::abs(b) + absolute)) {
      return mismatch(message(what, " at ", i, " of ", want.size(), ": ", a, " for ", b));
    }
  }
}

// The unit in the last place of 1.
template <typename T>
constexpr double kUnit = std::is_same_v<T, double>    ? 0x1p-52
                         : std::is_same_v<T, float>   ? 0x1p-23
                         : std::is_same_v<T, float16> ? 0x1p-10
                                                      : 0x1p-7;

inline DType random_dtype() { return one_of({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}); }

}  // namespace bimkern
