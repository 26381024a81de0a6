// CPU kernels of group_attention.h, bound by arithmetic.
//
// Parallel over blocks of images and slices of the pairs of a window and a head. The heads of a window follow each
// other, since they share its pages. One at a time: queries, keys and values are packed, so that each product is one of
// small matrices in the cache; queries pass in blocks of kQueries. What pads a group is never seen.
// forward: two products. backward: five, that of the logits once more; the gradient of the table as a sum over the
// images of a block, which is spread over relative positions once.
#include "ops/group_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/product.h"
#include "ops/window_tiles.h"

namespace bimkern {
namespace {

constexpr int64_t kQueries = 64;

// One head of a window, in the images of a block.
struct Task {
  const Window& window;
  const int32_t* positions;
  int64_t head;
  int64_t first_image;
  int64_t last_image;

  // From an image's rows to those of the next, or of the next head in the first image.
  int64_t ahead(int64_t image, int64_t image_stride, int64_t width) const {
    return image + 1 < last_image ? image_stride : width - (image - first_image) * image_stride;
  }
};

// Queries against keys of one head and window: scaled products plus bias, one block of queries at a time.
template <typename A>
class Logits {
 public:
  Logits(const GroupAttention& args, int64_t largest_window)
      : args_(args),
        size_(sizes_of(largest_window)),
        queries_(tokens()),
        keys_(tokens()),
        turned_keys_(tokens()),
        bias_(size_.columns * size_.columns),
        logits_(block()) {}

  // Elements of a matrix [n, d], [d, n] or [kQueries, n] of the largest window.
  int64_t tokens() const { return size_.columns * size_.channels; }
  int64_t block() const { return std::min(size_.columns, kQueries) * size_.columns; }

  const Sizes& size() const { return size_; }
  Matrix<const A> queries() { return {queries_.data(), size_.channels}; }
  Matrix<const A> keys() { return {keys_.data(), size_.channels}; }

  // Queries, keys or values of the head: part 0, 1 or 2.
  HeadRows part(int64_t part, const Task& task, int64_t image) const {
    const int64_t at = image * args_.image_stride + (part * args_.heads + task.head) * args_.width;
    return {args_.dtype, args_.qkv, at, args_.token_stride, task.ahead(image, args_.image_stride, args_.width)};
  }

  // Where padding is, the bias is -inf, so that it weighs nothing.
  BIMKERN_INLINE void take(const Task& task) {
    const int32_t* tokens = task.window.tokens;
    size_ = sizes_of(task.window.count);
    const A* middle = static_cast<const A*>(args_.table) + args_.relative_positions / 2 * args_.heads + task.head;
    A* bias = bias_.data();
    for (int64_t i = 0; i < size_.rows; ++i, bias += size_.columns) {
      const int64_t count = i < size_.tokens ? size_.tokens : 0;
      for (int64_t j = 0; j < count; ++j) {
        bias[j] = middle[(task.positions[tokens[i]] - task.positions[tokens[j]]) * args_.heads];
      }
      std::fill(bias + count, bias + size_.columns, -std::numeric_limits<A>::infinity());
    }
  }

  template <typename Set>
  BIMKERN_INLINE void take_image(Set set, const Task& task, int64_t image) {
    pack(set, part(0, task, image), task.window, size_, static_cast<A>(args_.scale), queries_.data());
    pack(set, part(1, task, image), task.window, size_, A{1}, keys_.data());
    transpose(keys_.data(), size_, turned_keys_.data());
  }

  // Those of queries [first, first + count).
  BIMKERN_INLINE Matrix<A> of_queries(int64_t first, int64_t count) {
    const Matrix<A> logits{logits_.data(), size_.columns};
    product<A>(queries().at(first, 0), {turned_keys_.data(), size_.columns},
               Matrix<const A>{bias_.data(), size_.columns}.at(first, 0), logits, whole_rows(count), size_.columns,
               size_.width);
    return logits;
  }

 private:
  Sizes sizes_of(int64_t n) const {
    return {n, args_.width, whole_rows(n), whole_columns(n), whole_columns(args_.width)};
  }

  const GroupAttention& args_;
  Sizes size_;
  Buffer<A> queries_;      // [n, d], times the scale
  Buffer<A> keys_;         // [n, d]
  Buffer<A> turned_keys_;  // [d, n]
  Buffer<A> bias_;         // [n, n]
  Buffer<A> logits_;       // [kQueries, n]
};

template <typename A>
class Forward {
 public:
  Forward(const GroupAttentionFwd& args, int64_t largest_window)
      : args_(args), logits_(args.of, largest_window), values_(logits_.tokens()), out_(logits_.tokens()) {}

  template <typename Set>
  BIMKERN_INLINE void run(Set set, const Task& task) {
    logits_.take(task);
    for (int64_t image = task.first_image; image < task.last_image; ++image) {
      logits_.take_image(set, task, image);
      pack(set, logits_.part(2, task, image), task.window, logits_.size(), A{1}, values_.data());
      for (int64_t first = 0; first < task.window.count; first += kQueries) {
        attend(set, task, image, first, std::min(task.window.count - first, kQueries));
      }
    }
  }

 private:
  template <typename Set>
  BIMKERN_INLINE void attend(Set set, const Task& task, int64_t image, int64_t first, int64_t count) {
    const GroupAttention& of = args_.of;
    const Sizes& size = logits_.size();
    const int32_t* tokens = task.window.tokens + first;
    A* logsumexp = static_cast<A*>(args_.logsumexp) + (image * of.heads + task.head) * of.plans.tokens;
    const Matrix<A> weights = logits_.of_queries(first, count);
    A sums[kQueries];
    for (int64_t i = 0; i < count; ++i) {
      A* row = weights.data + i * size.columns;
      const A largest = largest_of(row, size.columns);
      sums[i] = exponentiate(row, largest, size.columns);
      logsumexp[tokens[i]] = largest + std::log(sums[i]);
    }
    product<A>({weights.data, size.columns}, {values_.data(), size.channels}, {nullptr, 0},
               {out_.data(), size.channels}, whole_rows(count), size.channels, size.tokens);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = image * of.plans.tokens + tokens[i];
      unpack_row(set, out_.data() + i * size.channels, 1 / sums[i], of.width, of.dtype, args_.out,
                 (token * of.heads + task.head) * of.width);
    }
  }

  const GroupAttentionFwd& args_;
  Logits<A> logits_;
  Buffer<A> values_;  // [n, d]
  Buffer<A> out_;     // [kQueries, d]
};

template <typename A>
class Backward {
 public:
  Backward(const GroupAttentionBwd& args, int64_t largest_window)
      : args_(args),
        logits_(args.of, largest_window),
        values_(logits_.tokens()),
        turned_values_(logits_.tokens()),
        grads_(logits_.tokens()),
        grad_queries_(logits_.tokens()),
        grad_keys_(logits_.tokens()),
        grad_values_(logits_.tokens()),
        grad_logits_(logits_.block()),
        bias_sums_(logits_.size().columns * logits_.size().columns) {}

  // table_sums [H, R]: the gradient of the table is added.
  template <typename Set>
  BIMKERN_INLINE void run(Set set, const Task& task, double* table_sums) {
    logits_.take(task);
    const Sizes& size = logits_.size();
    std::fill_n(bias_sums_.data(), size.rows * size.columns, A{0});
    for (int64_t image = task.first_image; image < task.last_image; ++image) {
      take_image(set, task, image);
      for (int64_t first = 0; first < size.tokens; first += kQueries) {
        attend(set, task, image, first, std::min(size.tokens - first, kQueries));
      }
      store(set, task, image, 1, 0, size.tokens, A{1}, grad_keys_.data());
      store(set, task, image, 2, 0, size.tokens, A{1}, grad_values_.data());
    }
    const int64_t middle = args_.of.relative_positions / 2;
    spread(task, table_sums + task.head * args_.of.relative_positions + middle);
  }

 private:
  template <typename Set>
  BIMKERN_INLINE void take_image(Set set, const Task& task, int64_t image) {
    const Sizes& size = logits_.size();
    const int64_t stride = args_.grad_image_stride, at = image * stride + task.head * args_.of.width;
    const HeadRows grads{args_.of.dtype, args_.grad, at, args_.grad_token_stride,
                         task.ahead(image, stride, args_.of.width)};
    logits_.take_image(set, task, image);
    pack(set, logits_.part(2, task, image), task.window, size, A{1}, values_.data());
    transpose(values_.data(), size, turned_values_.data());
    pack(set, grads, task.window, size, A{1}, grads_.data());
  }

  template <typename Set>
  BIMKERN_INLINE void attend(Set set, const Task& task, int64_t image, int64_t first, int64_t count) {
    const GroupAttention& of = args_.of;
    const Sizes& size = logits_.size();
    const auto* logsumexp = static_cast<const A*>(args_.logsumexp) + (image * of.heads + task.head) * of.plans.tokens;
    const int64_t n = size.tokens, rows = whole_rows(count);
    const Matrix<A> weights = logits_.of_queries(first, count), grad_logits{grad_logits_.data(), size.columns};
    const Matrix<const A> grads = Matrix<const A>{grads_.data(), size.channels}.at(first, 0);
    product<A>(grads, {turned_values_.data(), size.columns}, {nullptr, 0}, grad_logits, rows, size.columns, size.width);
    for (int64_t i = 0; i < count; ++i) {
      A* row = weights.data + i * size.columns;
      A* grad_row = grad_logits.data + i * size.columns;
      const A sum = exponentiate(row, logsumexp[task.window.tokens[first + i]], size.columns);
      softmax_bwd(row, sum, grad_row, size.columns);
      add_row(grad_row, size.columns, bias_sums_.data() + (first + i) * size.columns);
    }
    product<A>({grad_logits.data, size.columns}, logits_.keys(), {nullptr, 0}, {grad_queries_.data(), size.channels},
               rows, size.channels, n);
    store(set, task, image, 0, first, count, static_cast<A>(of.scale), grad_queries_.data());
    // Transposed: a row for each key and value.
    add_product({grad_logits.data, 1, size.columns}, logits_.queries().at(first, 0), grad_keys_, first, count);
    add_product({weights.data, 1, size.columns}, grads, grad_values_, first, count);
  }

  // sums [n, d] += a [n, count] @ b [count, d], after those of the queries before the first.
  BIMKERN_INLINE void add_product(Matrix<const A> a, Matrix<const A> b, Buffer<A>& sums, int64_t first, int64_t count) {
    const Sizes& size = logits_.size();
    const Matrix<A> out{sums.data(), size.channels};
    product<A>(a, b, {first == 0 ? nullptr : out.data, out.row}, out, size.rows, size.channels, count);
  }

  // Writes factor * rows [count, d] as part 0, 1 or 2 of the gradient, for the window's tokens from the first on.
  template <typename Set>
  BIMKERN_INLINE void store(Set set, const Task& task, int64_t image, int64_t part, int64_t first, int64_t count,
                            A factor, A* rows) {
    const GroupAttention& of = args_.of;
    for (int64_t i = 0; i < count; ++i, rows += logits_.size().channels) {
      const int64_t token = image * of.plans.tokens + task.window.tokens[first + i];
      unpack_row(set, rows, factor, of.width, of.dtype, args_.grad_qkv,
                 ((token * 3 + part) * of.heads + task.head) * of.width);
    }
  }

  BIMKERN_INLINE void add_row(const A* __restrict row, int64_t columns, A* __restrict sums) {
    for (int64_t j = 0; j < columns; ++j) {
      sums[j] += row[j];
    }
  }

  // table_sums: of relative position zero.
  BIMKERN_INLINE void spread(const Task& task, double* table_sums) {
    const Window& window = task.window;
    for (int64_t i = 0; i < window.count; ++i) {
      const A* row = bias_sums_.data() + i * logits_.size().columns;
      double* sums = table_sums + task.positions[window.tokens[i]];
      for (int64_t j = 0; j < window.count; ++j) {
        sums[-task.positions[window.tokens[j]]] += row[j];
      }
    }
  }

  const GroupAttentionBwd& args_;
  Logits<A> logits_;
  Buffer<A> values_;         // [n, d]
  Buffer<A> turned_values_;  // [d, n]
  Buffer<A> grads_;          // [n, d], of the output
  Buffer<A> grad_queries_;   // [kQueries, d]
  Buffer<A> grad_keys_;      // [n, d]
  Buffer<A> grad_values_;    // [n, d]
  Buffer<A> grad_logits_;    // [kQueries, n]
  Buffer<A> bias_sums_;      // [n, n]
};

// Calls work(runner, task, slice) for each window and head of each block of images, with one runner a thread.
template <typename Runner, typename Args, typename Work>
void for_each_task(const char* op, const Args& args, const Parallel& parallel, const Work& work) {
  const GroupAttention& of = args.of;
  const std::vector<Plan> plans = read_plans(op, of.plans, of.relative_positions);
  const int64_t images = images_of_block(of.plans.plans), slices = images * kSlicesOfImage;
  int64_t largest = 0;
  for (const Plan& plan : plans) {
    for (const Window& window : plan.windows) {
      largest = std::max(largest, window.count);
    }
  }
  parallel(attention_tasks(of.images, of.plans.plans), 1, [&](int64_t begin, int64_t end) {
    Runner runner(args, largest);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / slices * images, slice = i % slices;
      const Plan& plan = plans[plans.size() == 1 ? 0 : first];
      const int64_t pairs = static_cast<int64_t>(plan.windows.size()) * of.heads;
      for (int64_t pair = pairs * slice / slices; pair < pairs * (slice + 1) / slices; ++pair) {
        work(runner,
             Task{plan.windows[pair / of.heads], plan.positions, pair % of.heads, first,
                  std::min(first + images, of.images)},
             i);
      }
    }
  });
}

template <typename A>
void forward(const GroupAttentionFwd& args, const Parallel& parallel, Simd simd) {
  for_each_task<Forward<A>>("group_attention", args, parallel, [=](Forward<A>& runner, const Task& task, int64_t) {
    vectorized(simd, [&](auto set) BIMKERN_INLINE { runner.run(set, task); });
  });
}

template <typename A>
void backward(const GroupAttentionBwd& args, const Parallel& parallel, Simd simd) {
  const int64_t length = args.of.relative_positions * args.of.heads;
  const int64_t tasks = attention_tasks(args.of.images, args.of.plans.plans);
  std::fill_n(args.scratch, tasks * length, 0.0);
  for_each_task<Backward<A>>(
      "group_attention_bwd", args, parallel, [=, &args](Backward<A>& runner, const Task& task, int64_t slice) {
        vectorized(simd, [&](auto set) BIMKERN_INLINE { runner.run(set, task, args.scratch + slice * length); });
      });
  for (int64_t slice = 1; slice < tasks; ++slice) {
    for (int64_t i = 0; i < length; ++i) {
      args.scratch[i] += args.scratch[slice * length + i];
    }
  }
  for (int64_t i = 0; i < length; ++i) {
    const int64_t head = i / args.of.relative_positions, position = i % args.of.relative_positions;
    static_cast<A*>(args.grad_table)[position * args.of.heads + head] =
        tasks == 0 ? A{0} : static_cast<A>(args.scratch[i]);
  }
}

}  // namespace

void group_attention(const GroupAttentionFwd& args, const Parallel& parallel, Simd simd) {
  dispatch_arithmetic(args.of.dtype, [&](auto type) { forward<decltype(type)>(args, parallel, simd); });
}

void group_attention_bwd(const GroupAttentionBwd& args, const Parallel& parallel, Simd simd) {
  dispatch_arithmetic(args.of.dtype, [&](auto type) { backward<decltype(type)>(args, parallel, simd); });
}

}  // namespace bimkern
