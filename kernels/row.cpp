// One row of numbers through the linear layers of a decoder, read at the speed of memory. Built by `row.py`.
//
// In bfloat16 the sums go in the order in which oneDNN takes them on a processor with AVX512-BF16: sixteen lanes, each
// over pairs of neighbours, the second of a pair first. `row.py` uses them only where they give torch's own bits.
#include <cmath>
#include <cstdint>
#include <cstring>

struct bfloat16 {
  uint16_t bits;
  operator float() const {
    const uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kWorthThreads = 1 << 16;  // products of a call; fewer are done sooner than a second thread is woken

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

template <class T> T rounded(float value);
template <> float rounded<float>(float value) { return value; }
template <> bfloat16 rounded<bfloat16>(float value) {  // to the nearest, ties to even
  uint32_t word;
  std::memcpy(&word, &value, 4);
  if (value != value) return {uint16_t(word >> 16 | 0x40)};
  return {uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16)};
}

template <class V> V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// How a row lies beside weights of one kind, and what they give together. All read `2 * kLanes` inputs at a time.

template <class W> struct Weights {  // float and int8: in their order
  static void lay(const float* row, Floats* laid, int64_t inputs) { std::memcpy(laid, row, inputs * sizeof(float)); }
  static Floats wide(const float* from) { return load<Floats>(from); }
  static Floats wide(const int8_t* from) {  // a step at a time, each of which is one instruction
    const Shorts shorts = __builtin_convertvector(load<Bytes>(from), Shorts);
    return __builtin_convertvector(__builtin_convertvector(shorts, Integers), Floats);
  }
  static Floats sums(const W* weights, const Floats* row, int64_t inputs) {
    Floats first = {}, second = {};
    for (int64_t i = 0; i < inputs / kLanes; i += 2) {
      first += wide(weights + i * kLanes) * row[i];
      second += wide(weights + (i + 1) * kLanes) * row[i + 1];
    }
    return first + second;
  }
};

template <> struct Weights<bfloat16> {  // the second of each pair of neighbours in front of the first
  static void lay(const float* row, Floats* laid, int64_t inputs) {
    float* to = reinterpret_cast<float*>(laid);
    for (int64_t i = 0; i < inputs; i += 2 * kLanes)
      for (int64_t lane = 0; lane < kLanes; lane++) {
        to[i + lane] = row[i + 2 * lane + 1];
        to[i + kLanes + lane] = row[i + 2 * lane];
      }
  }
  static Floats sums(const bfloat16* weights, const Floats* row, int64_t inputs) {
    Floats sum = {};
    for (int64_t i = 0; i < inputs / kLanes; i += 2) {
      const Words pairs = load<Words>(weights + i * kLanes);
      sum += Floats(pairs & 0xffff0000u) * row[i];
      sum += Floats(pairs << 16) * row[i + 1];
    }
    return sum;
  }
};

float total(Floats sums) {
  float lane[kLanes];
  std::memcpy(lane, &sums, sizeof lane);
  for (int64_t i = 0; i < 8; i++) lane[i] += lane[i + 8];
  for (int64_t i = 0; i < 4; i++) lane[i] += lane[i + 4];
  return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

// Root mean square norm, rounded before the weight is applied and after it.
template <class T> void normalise(const T* row, const T* norm, float epsilon, float* out, int64_t count) {
  double squares = 0;
  for (int64_t i = 0; i < count; i++) squares += double(row[i]) * double(row[i]);
  const float scale = 1 / std::sqrt(float(squares) / float(count) + epsilon);
  for (int64_t i = 0; i < count; i++) out[i] = rounded<T>(norm[i] * float(rounded<T>(row[i] * scale)));
}

}  // namespace

// A linear layer. scale: of weights in int8, one an output; bias may be null.
struct Part {
  const void *weight, *scale, *bias;
  int64_t outputs;
};

// out = onto + parts(norm(row)), parts side by side; norm, onto: null for none.
template <class T, class W>
static void project(
    const T* row, const T* norm, float epsilon, const Part* parts, int64_t count, const T* onto, T* out, int64_t inputs,
    int64_t threads) {
  float values[inputs];
  Floats laid[inputs / kLanes];
  int64_t all = 0;
  for (int64_t p = 0; p < count; p++) all += parts[p].outputs;
  if (norm)
    normalise(row, norm, epsilon, values, inputs);
  else
    for (int64_t i = 0; i < inputs; i++) values[i] = row[i];
  Weights<W>::lay(values, laid, inputs);
#pragma omp parallel num_threads(threads) if (all * inputs > kWorthThreads)
  for (int64_t p = 0, begin = 0; p < count; begin += parts[p++].outputs) {
    const W* weight = static_cast<const W*>(parts[p].weight);
    const T* scale = static_cast<const T*>(parts[p].scale);
    const T* bias = static_cast<const T*>(parts[p].bias);
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < parts[p].outputs; i++) {
      float sum = total(Weights<W>::sums(weight + i * inputs, laid, inputs));
      if (scale) sum *= float(scale[i]);
      const T made = rounded<T>(bias ? sum + float(bias[i]) : sum);
      out[begin + i] = onto ? rounded<T>(float(onto[begin + i]) + float(made)) : made;
    }
  }
}

// Rotary positions: queries to `out`, keys and values to their place in the cache, whose heads are `stride` apart.
// cosine, sine: of the place, the first half of the sines negated. norms: of queries and keys, or null.
template <class T>
static void rotate(
    const T* mixed, const T* cosine, const T* sine, const T* query_norm, const T* key_norm, float epsilon,
    int64_t heads, int64_t shared, int64_t width, T* out, T* keys, T* values, int64_t stride) {
  float head[width];
  for (int64_t h = 0; h < heads + shared; h++, mixed += width) {
    const T* norm = h < heads ? query_norm : key_norm;
    T* to = h < heads ? out + h * width : keys + (h - heads) * stride;
    if (norm)
      normalise(mixed, norm, epsilon, head, width);
    else
      for (int64_t i = 0; i < width; i++) head[i] = mixed[i];
    for (int64_t i = 0; i < width; i++) {
      const float other = head[i < width / 2 ? i + width / 2 : i - width / 2];
      const T straight = rounded<T>(head[i] * float(cosine[i])), turned = rounded<T>(other * float(sine[i]));
      to[i] = rounded<T>(float(straight) + float(turned));
    }
  }
  for (int64_t h = 0; h < shared; h++, mixed += width) std::memcpy(values + h * stride, mixed, width * sizeof(T));
}

#define PROJECT(NAME, T, W)                                                                                      \
  extern "C" void NAME(const T* row, const T* norm, float epsilon, const Part* parts, int64_t count, const T* onto, \
                       T* out, int64_t inputs, int64_t threads) {                                                \
    project<T, W>(row, norm, epsilon, parts, count, onto, out, inputs, threads);                                 \
  }
PROJECT(project_float32, float, float)
PROJECT(project_bfloat16, bfloat16, bfloat16)
PROJECT(project_int8, bfloat16, int8_t)

#define ROTATE(NAME, T)                                                                                         \
  extern "C" void NAME(const T* mixed, const T* cosine, const T* sine, const T* query_norm, const T* key_norm,  \
                       float epsilon, int64_t heads, int64_t shared, int64_t width, T* out, T* keys, T* values, \
                       int64_t stride) {                                                                        \
    rotate<T>(mixed, cosine, sine, query_norm, key_norm, epsilon, heads, shared, width, out, keys, values, stride); \
  }
ROTATE(rotate_float32, float)
ROTATE(rotate_bfloat16, bfloat16)
