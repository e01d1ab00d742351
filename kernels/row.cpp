// One row of numbers through the layers of a decoder, read at the speed of memory. Built by `row.py`.
//
// In bfloat16 everything is summed in the order in which torch sums it on a processor with AVX512-BF16, so that it gives
// torch's own bits; `row.py` compares the two before anything is used. A linear layer there is oneDNN's: sixteen lanes,
// each over pairs of neighbours, the second of a pair first. Products of two bfloat16 are exact in float32, so it makes
// no difference whether they are rounded before they are added.
#include <algorithm>
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
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
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

// The sums of every fourth lane, in the first four of `lane`.
void halve(Floats sums, float* lane) {
  std::memcpy(lane, &sums, sizeof sums);
  for (int64_t i = 0; i < 8; i++) lane[i] += lane[i + 8];
  for (int64_t i = 0; i < 4; i++) lane[i] += lane[i + 4];
}

float total(Floats sums) {
  float lane[kLanes];
  halve(sums, lane);
  return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

// The sum of squares as torch's `mean` has it: four vectors of eight lanes, taken over sixteen times before they join
// what was summed so far, then one after the other.
float squares(const float* row, int64_t count) {
  constexpr int64_t kWide = 32, kTurns = 16, kLevels = 4;
  float level[kLevels][kWide] = {};
  int64_t turn = 0, i = 0;
  for (; i + kWide <= count; i += kWide) {
    for (int64_t lane = 0; lane < kWide; lane++) level[0][lane] += row[i + lane] * row[i + lane];
    turn++;
    for (int64_t l = 1, turns = kTurns; l < kLevels && turn % turns == 0; l++, turns *= kTurns)
      for (int64_t lane = 0; lane < kWide; lane++) {
        level[l][lane] += level[l - 1][lane];
        level[l - 1][lane] = 0;
      }
  }
  for (int64_t l = 1; l < kLevels; l++)
    for (int64_t lane = 0; lane < kWide; lane++) level[0][lane] += level[l][lane];
  float* lanes = level[0];
  for (; i + 8 <= count; i += 8)
    for (int64_t lane = 0; lane < 8; lane++) lanes[lane] += row[i + lane] * row[i + lane];
  for (int64_t lane = 8; lane < kWide; lane++) lanes[lane % 8] += lanes[lane];
  float sum = 0;
  for (; i < count; i++) sum += row[i] * row[i];
  for (int64_t lane = 0; lane < 8; lane++) sum += lanes[lane];
  return sum;
}

// Root mean square norm, rounded before the weight is applied and after it. wide: the row in float32; may be `out`.
template <class T> void normalise(const float* wide, const T* norm, float epsilon, float* out, int64_t count) {
  const float scale = 1 / std::sqrt(squares(wide, count) / float(count) + epsilon);
  for (int64_t i = 0; i < count; i++) out[i] = rounded<T>(norm[i] * float(rounded<T>(wide[i] * scale)));
}

// Attention of one token, as torch's flash attention has it for bfloat16. Queries that share their keys go together.

constexpr int64_t kKeys = 512;  // in a block, of which the softmax knows the sum when it goes on to the next

// 2^x for x <= 0, out of the bits of a float32: a polynomial bends the straight line between two powers (Malossi et
// al., "Fast exponential computation on SIMD architectures", 2015; the four coefficients are those that torch takes).
Floats two_to(Floats x) {
  Floats below;
  for (int64_t i = 0; i < kLanes; i++) below[i] = std::floor(x[i]);
  const Floats part = x - below;
  const Floats bend =
      ((part * -0.079204240219773236f - 0.22433836478672356f) * part + 0.30354260500649682f) * part +
      0.00010703434948458272f;
  const Integers bits = __builtin_convertvector((x - bend) * 0x1p23f + 127 * 0x1p23f, Integers);
  return Floats(bits & (x >= -126.0f));
}

Floats wide(Halves halves) { return Floats(__builtin_convertvector(halves, Words) << 16); }

Floats rounded(Floats x) {
  const Words words = Words(x);
  return Floats((words + 0x7fff + (words >> 16 & 1)) & 0xffff0000u);
}

// Four numbers of each of four keys, the first from `keys` on; of keys that are not there the last one's.
Floats quarters(const bfloat16* keys, int64_t there, int64_t width) {
  uint64_t four[4];
  for (int64_t k = 0; k < 4; k++) std::memcpy(&four[k], keys + std::min(k, there - 1) * width, 8);
  return wide(load<Halves>(four));
}

// Scores [queries, kKeys]: products of queries and keys, times `scale`. A product is four sums over every fourth
// number, the even ones and the odd ones together first. asked: [queries, width / 4], four numbers four times.
void compare(
    const Floats* asked, int64_t queries, const bfloat16* keys, int64_t count, int64_t width, float scale,
    float* scores) {
  const int64_t steps = width / 4;
  Floats key[steps];
  for (int64_t t = 0; t < count; t += 4, keys += 4 * width) {
    const int64_t there = std::min<int64_t>(4, count - t);
    for (int64_t i = 0; i < steps; i++) key[i] = quarters(keys + 4 * i, there, width);
    for (int64_t q = 0; q < queries; q++) {
      Floats sum = {};
      for (int64_t i = 0; i < steps; i++) sum += asked[q * steps + i] * key[i];
      float lane[kLanes];
      std::memcpy(lane, &sum, sizeof lane);
      for (int64_t k = 0; k < 4; k++) {
        const float* own = lane + 4 * k;
        scores[q * kKeys + t + k] = ((own[0] + own[2]) + (own[1] + own[3])) * scale;
      }
    }
  }
}

// Scores become e^(score - top), rounded; their sum, of numbers that are not. Every other vector has a sum of its own,
// but for what is left over.
float weigh(float* scores, int64_t count, float top) {
  const int64_t paired = count / (2 * kLanes) * 2 * kLanes, whole = count / kLanes * kLanes;
  for (int64_t t = 0; t < whole; t++) scores[t] = (scores[t] - top) * 1.44269504f;
  Floats sums[2] = {};
  for (int64_t t = 0; t < whole; t += kLanes) {
    const Floats made = two_to(load<Floats>(scores + t)), weight = rounded(made);
    sums[t < paired ? t / kLanes % 2 : 0] += made;
    std::memcpy(scores + t, &weight, sizeof weight);
  }
  float lane[kLanes];
  halve(sums[0] + sums[1], lane);
  float sum = (lane[0] + lane[2]) + (lane[1] + lane[3]);
  for (int64_t t = whole; t < count; t++) {
    const float made = std::exp(scores[t] - top);
    sum += made;
    scores[t] = rounded<bfloat16>(made);
  }
  return sum;
}

// Adds `count` values, each times its weight, to mixed [queries, width / kLanes]: four at a time, the even ones and the
// odd ones together first; what is left over from the last one on. weights: [queries, kKeys].
void mix(
    const float* weights, int64_t queries, const bfloat16* values, int64_t count, int64_t width, Floats* mixed) {
  const int64_t steps = width / kLanes, fours = count / 4 * 4;
  for (int64_t t = 0; t < fours; t += 4, values += 4 * width)
    for (int64_t i = 0; i < steps; i++) {
      Floats value[4];
      for (int64_t k = 0; k < 4; k++) value[k] = wide(load<Halves>(values + k * width + i * kLanes));
      for (int64_t q = 0; q < queries; q++) {
        const float* own = weights + q * kKeys + t;
        mixed[q * steps + i] += (own[0] * value[0] + own[2] * value[2]) + (own[1] * value[1] + own[3] * value[3]);
      }
    }
  for (int64_t left = count - fours - 1; left >= 0; left--)
    for (int64_t i = 0; i < steps; i++) {
      const Floats value = wide(load<Halves>(values + left * width + i * kLanes));
      for (int64_t q = 0; q < queries; q++) mixed[q * steps + i] += weights[q * kKeys + fours + left] * value;
    }
}

// query, out: [queries, width]; keys, values: [length, width].
void attend(
    const bfloat16* query, int64_t queries, const bfloat16* keys, const bfloat16* values, int64_t width,
    int64_t length, float scale, bfloat16* out) {
  Floats asked[queries * width / 4], mixed[queries * width / kLanes];
  float scores[queries * kKeys], sum[queries], highest[queries];
  for (int64_t i = 0; i < queries * width / 4; i++)
    for (int64_t lane = 0; lane < kLanes; lane++) asked[i][lane] = query[4 * i + lane % 4];
  for (int64_t i = 0; i < queries * width / kLanes; i++) mixed[i] = Floats{};
  for (int64_t q = 0; q < queries; q++) sum[q] = 0, highest[q] = -INFINITY;
  for (int64_t t = 0; t < length; t += kKeys) {
    const int64_t count = std::min(kKeys, length - t);
    compare(asked, queries, keys + t * width, count, width, scale, scores);
    for (int64_t q = 0; q < queries; q++) {
      float* own = scores + q * kKeys;
      float top = highest[q];
      for (int64_t k = 0; k < count; k++) top = own[k] > top ? own[k] : top;
      const float fade = std::exp(highest[q] - top);
      sum[q] = weigh(own, count, top) + fade * sum[q];
      for (int64_t i = 0; i < width / kLanes && t; i++) mixed[q * width / kLanes + i] *= fade;
      highest[q] = top;
    }
    mix(scores, queries, values + t * width, count, width, mixed);
  }
  const float* made = reinterpret_cast<const float*>(mixed);
  for (int64_t i = 0; i < queries * width; i++) out[i] = rounded<bfloat16>(made[i] * (1 / sum[i / width]));
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
  for (int64_t i = 0; i < inputs; i++) values[i] = row[i];
  if (norm) normalise(values, norm, epsilon, values, inputs);
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
    for (int64_t i = 0; i < width; i++) head[i] = mixed[i];
    if (norm) normalise(head, norm, epsilon, head, width);
    for (int64_t i = 0; i < width; i++) {
      const float other = head[i < width / 2 ? i + width / 2 : i - width / 2];
      const T straight = rounded<T>(head[i] * float(cosine[i])), turned = rounded<T>(other * float(sine[i]));
      to[i] = rounded<T>(float(straight) + float(turned));
    }
  }
  for (int64_t h = 0; h < shared; h++, mixed += width) std::memcpy(values + h * stride, mixed, width * sizeof(T));
}

// Attention of one token's queries to `length` keys, whose heads are `stride` apart; each is read by heads / shared of
// the queries. Every thread takes as many queries.
extern "C" void attend_bfloat16(
    const bfloat16* query, const bfloat16* keys, const bfloat16* values, int64_t stride, int64_t heads, int64_t shared,
    int64_t width, int64_t length, float scale, bfloat16* out, int64_t threads) {
  const int64_t group = heads / shared, parts = heads * length * width > kWorthThreads ? threads : 1;
#pragma omp parallel for num_threads(parts) if (parts > 1)
  for (int64_t part = 0; part < parts; part++) {
    const int64_t stop = (part + 1) * heads / parts;
    for (int64_t h = part * heads / parts, next; h < stop; h = next) {
      const int64_t head = h / group;
      next = std::min(stop, (head + 1) * group);
      attend(query + h * width, next - h, keys + head * stride, values + head * stride, width, length, scale,
             out + h * width);
    }
  }
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
