// Test program of the core without Python: every function of every instruction set that runs here, on random shapes,
// against double precision (oracle.h); the same bits for any number of threads; nothing written beside the results.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "../cpu/dispatch.h"
#include "check.h"
#include "oracle.h"
#include "random_case.h"
#include "shards.h"

namespace {

using namespace cplearn;
using oracle::Matrix;

// Runs `call(run, result)` with 1, 2 and 3 threads; the bits must agree and nothing beside the result may change.
template <class Call>
std::vector<float> same_for_all_threads(const std::string& what, int64_t count, const Call& call) {
  std::vector<float> first;
  for (int threads = 1; threads <= 3; ++threads) {
    Guarded result(count);
    call(Run{threads, nullptr}, result.get());
    require(result.intact(), what + ": wrote beside its result");
    const std::vector<float> values = result.values();
    if (threads == 1) first = values;
    require(memcmp(first.data(), values.data(), sizeof(float) * first.size()) == 0, what + ": bits depend on threads");
  }
  return first;
}

// The tolerances of the Python tests: 1e-5 of the gradient's norm, or of a floor, since near the optimum gradients
// vanish; 5e-5 for few features, where nothing averages the rounding of a float32 logit and equal codes share a row's
// mass, so that a gradient cancels down to little.
double gradient_tolerance(const Codes& codes) { return codes.num_features <= 16 ? 5e-5 : 1e-5; }

// The loss in one piece, or by shards.
struct Loss {
  std::string name;
  std::function<void(const Batch (&)[2], const LossRequest&, const Run&, LossResult&)> compute;
};

void check_loss(const Case& test, LossRequest request, const oracle::Loss& expected, const Loss& loss) {
  const int64_t f = test.codes.num_features, size = test.n * f;
  const Batch views[2] = {{test.h[0].data(), test.n}, {test.h[1].data(), test.n}};
  double terms[2];
  std::vector<float> got = same_for_all_threads(loss.name, 2 * size + 2, [&](const Run& run, float* out) {
    LossResult result{0, 0, {out, out + size}};
    loss.compute(views, request, run, result);
    terms[0] = result.invariance, terms[1] = result.prior;
    out[2 * size] = float(result.invariance), out[2 * size + 1] = float(result.prior);
  });
  got.resize(size_t(2 * size));
  const double value = terms[1] + request.beta * terms[0];
  const double right = expected.prior + request.beta * expected.invariance;
  const double tolerance = (f <= 16 ? 5e-6 : 1e-6) * std::max(std::fabs(right), 1.0);
  require(std::fabs(value - right) <= tolerance, loss.name + ": value");
  std::vector<double> grads = expected.grad[0].data;
  grads.insert(grads.end(), expected.grad[1].data.begin(), expected.grad[1].data.end());
  const double floor = 1e-2 * std::sqrt(double(f) / double(test.n)) / (2 * test.temperature);
  compare(loss.name + ": gradient", got, grads, gradient_tolerance(test.codes), floor);
  request.need_grad = false;
  LossResult without{0, 0, {nullptr, nullptr}};
  loss.compute(views, request, {2, nullptr}, without);
  require(without.invariance == terms[0] && without.prior == terms[1], loss.name + ": depends on need_grad");
}

void check_losses(Case& test, const Kernels& kernels, const Matrix& w) {
  const int64_t f = test.codes.num_features, c = test.codes.num_codes;
  const Matrix h[2] = {oracle::from_floats(test.h[0], f), oracle::from_floats(test.h[1], f)};
  std::vector<float> q;
  for (int64_t j = 0; j < c; ++j) q.push_back(float(std::exp(test.normal())));
  double total = 0;
  for (const float value : q) total += value;
  for (float& value : q) value = float(value / total);
  for (int prior = 0; prior < 2; ++prior) {
    const double betas[] = {0, 0.5, 1, 3};
    const float* const prior_probs = test.below(2) ? q.data() : nullptr;
    const LossRequest request{test.temperature, betas[test.below(4)], Prior(prior), prior_probs, true};
    const oracle::Loss expected = oracle::loss(h, w, request);
    check_loss(test, request, expected, {"cplearn_loss", [&](auto& views, auto& asked, auto& run, auto& result) {
      kernels.cplearn_loss(test.codes, views, asked, run, result);
    }});
    const std::vector<Shard> shards = random_shards(test);
    check_loss(test, request, expected, {"loss by shards", [&](auto& views, auto& asked, auto& run, auto& result) {
      loss_by_shards(kernels, shards, views, asked, run, result);
    }});
  }
}

void check_rows(Case& test, const Kernels& kernels, const Matrix& w) {
  const int64_t f = test.codes.num_features, c = test.codes.num_codes, n = test.n;
  const Codes& codes = test.codes;
  const double temperature = test.temperature;
  const Batch batch{test.h[0].data(), n};
  const Matrix s = oracle::logits(oracle::from_floats(test.h[0], f), w, temperature);
  const Matrix p = oracle::exp(oracle::log_softmax(s));
  // A gradient's floor: what `upstream` gives if whole rows move by one code.
  const auto floor_of = [&](const std::vector<float>& upstream) {
    double sum = 0;
    for (const float value : upstream) sum += double(value) * value;
    return 1e-2 * std::sqrt(sum * double(f)) / temperature;
  };

  const auto lse = same_for_all_threads("projector_logsumexp", n, [&](const Run& run, float* out) {
    kernels.projector_logsumexp(codes, batch, temperature, run, out);
  });
  compare("projector_logsumexp", lse, oracle::logsumexp(s), 1e-5, 1);  // a sum of about 1 is as exact as its logits

  const auto softmax = same_for_all_threads("projector_softmax", n * c, [&](const Run& run, float* out) {
    kernels.projector_softmax(codes, batch, temperature, run, out);
  });
  compare("projector_softmax", softmax, p.data, 1e-5, 0);
  const std::vector<float> per_entry = test.normals(n * c);
  const auto softmax_grad = same_for_all_threads("projector_softmax_backward", n * f, [&](const Run& run, float* out) {
    kernels.projector_softmax_backward(codes, n, per_entry.data(), softmax.data(), temperature, run, out);
  });
  compare("projector_softmax_backward", softmax_grad,
          oracle::softmax_backward(p, oracle::from_floats(per_entry, c), w, temperature).data,
          gradient_tolerance(codes), floor_of(per_entry));

  const auto expected_code = same_for_all_threads("expected_code", n * f, [&](const Run& run, float* out) {
    kernels.expected_code(codes, batch, temperature, run, out);
  });
  compare("expected_code", expected_code, oracle::sum_codes(p, w).data, 1e-5, 0.1 * std::sqrt(double(n * f)));
  const std::vector<float> per_row = test.normals(n * f);
  const auto code_grad = same_for_all_threads("expected_code_backward", n * f, [&](const Run& run, float* out) {
    kernels.expected_code_backward(codes, batch, per_row.data(), temperature, run, out);
  });
  const Matrix products = oracle::logits(oracle::from_floats(per_row, f), w, 1);
  compare("expected_code_backward", code_grad, oracle::softmax_backward(p, products, w, temperature).data,
          gradient_tolerance(codes), floor_of(per_row));

  std::vector<double> mean(size_t(c), 0.0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < c; ++j) mean[size_t(j)] += p[i][j] / double(n);
  }
  const auto means = same_for_all_threads("mean_assignment", c, [&](const Run& run, float* out) {
    kernels.mean_assignment(codes, batch, temperature, run, out);
  });
  compare("mean_assignment", means, mean, 1e-5, 0);
  const std::vector<Shard> shards = random_shards(test);
  const auto sharded_means = same_for_all_threads("mean_assignment by shards", c, [&](const Run& run, float* out) {
    mean_assignment_by_shards(kernels, shards, batch, temperature, run, out);
  });
  compare("mean_assignment by shards", sharded_means, mean, 1e-5, 0);
  const std::vector<float> per_code = test.normals(c);
  const auto mean_grad = same_for_all_threads("mean_assignment_backward", n * f, [&](const Run& run, float* out) {
    kernels.mean_assignment_backward(codes, batch, per_code.data(), temperature, run, out);
  });
  Matrix v(n, c);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < c; ++j) v[i][j] = per_code[size_t(j)] / double(n);
  }
  compare("mean_assignment_backward", mean_grad, oracle::softmax_backward(p, v, w, temperature).data,
          gradient_tolerance(codes), floor_of(per_code) / double(n));

  const int64_t top_k = std::min<int64_t>(1 + test.below(5), c);
  std::vector<int64_t> found(size_t(n * top_k));
  const auto scores = same_for_all_threads("assign", n * top_k, [&](const Run& run, float* out) {
    kernels.assign(codes, batch, top_k, run, out, found.data());
  });
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> sorted(s[i], s[i] + c);
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    for (int64_t t = 0; t < top_k; ++t) {
      // |h| = 1, so that a product is at most sqrt(f), and its float32 sum off by less than this.
      const double slack = 1e-5 * std::sqrt(double(f)), score = scores[size_t(i * top_k + t)];
      const int64_t code = found[size_t(i * top_k + t)];
      require(code >= 0 && code < c, "assign: no such code");
      require(std::fabs(score - sorted[size_t(t)] * temperature) <= slack, "assign: score");
      require(std::fabs(score - s[i][code] * temperature) <= slack, "assign: score of another code");
      for (int64_t u = 0; u < t; ++u) require(found[size_t(i * top_k + u)] != code, "assign: a code twice");
    }
  }
}

// The comparison itself must reject what is wrong.
void check_the_checks() {
  const std::vector<double> right = {1, 2, 3};
  compare("self-test", {1, 2, 3}, right, 1e-5, 0);
  for (const std::vector<float>& wrong : {std::vector<float>{0, 0, 0}, {-1, -2, -3}, {1, 2, 3.0002f}, {1, 2, NAN}}) {
    bool rejected = false;
    try {
      compare("self-test", wrong, right, 1e-5, 0);
    } catch (const Failure&) {
      rejected = true;
    }
    require(rejected, "the comparison accepts a wrong answer");
  }
}

// A call that would take minutes ends soon after `interrupted` says so, and the next call is right.
void check_interruption(const Kernels& kernels) {
  const std::vector<float> h(64, 0.125f);
  Codes codes{CodeKind::kRademacher, 64, int64_t{1} << 34, 1, 6, nullptr, nullptr};
  const Batch batch{h.data(), 1}, views[2] = {batch, batch};
  for (int threads = 1; threads <= 2; ++threads) {
    for (int which = 0; which < 5; ++which) {
      const Run run{threads, [] { return true; }};
      LossResult result{0, 0, {nullptr, nullptr}};
      float score;
      int64_t code;
      double best[2] = {}, others[2] = {}, scalars[2 * kRowScalars];
      int64_t no_code[2] = {-1, -1};
      RowBests bests{best, others, no_code};
      ShardSums sums{scalars, nullptr, nullptr, 0};
      bool stopped = false;
      const auto began = std::chrono::steady_clock::now();
      try {
        if (which == 0) kernels.cplearn_loss(codes, views, {1, 1, Prior::kReverseKL, nullptr, false}, run, result);
        if (which == 1) kernels.projector_logsumexp(codes, batch, 1, run, &score);
        if (which == 2) kernels.assign(codes, batch, 1, run, &score, &code);
        if (which == 3) kernels.row_sums(codes, batch, 1, run, bests);
        if (which == 4) {
          kernels.shard_sums(codes, views, bests, {1, 1, Prior::kReverseKL, nullptr, false}, run, sums);
        }
      } catch (const Interrupted&) {
        stopped = true;
      }
      require(stopped, "an interrupted call went on to its end");
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
      require(took < 20, "an interrupted call took long to stop");
    }
  }
}

int usage(const char* program, int status) {
  printf("usage: %s [--seed S] [--cases N] [--target NAME]\n\n"
         "Checks every function of the core on N random cases (default 100, seeds S, S + 1, ...; default 1) per\n"
         "instruction set, against double precision. Exit status 1 and the seed at the first failure.\n", program);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  uint32_t seed = 1;
  int cases = 100;
  std::string target;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--help" || option == "-h") return usage(argv[0], 0);
    if (i + 1 >= argc) return usage(argv[0], 2);
    if (option == "--seed") seed = uint32_t(strtoul(argv[++i], nullptr, 10));
    else if (option == "--cases") cases = atoi(argv[++i]);
    else if (option == "--target") target = argv[++i];
    else return usage(argv[0], 2);
  }
  int passed = 0;
  for (const Kernels* kernels : runnable_kernels()) {
    if (!target.empty() && target != kernels->name) continue;
    std::string where = "self-test";
    try {
      check_the_checks();
      where = "interruption";
      check_interruption(*kernels);
      for (int i = 0; i < cases; ++i) {
        Case test(seed + uint32_t(i));
        where = "seed " + std::to_string(seed + uint32_t(i)) + ": " + test.describe();
        const Matrix w = oracle::dense(test.codes);
        check_losses(test, *kernels, w);
        check_rows(test, *kernels, w);
        ++passed;
      }
    } catch (const Failure& failure) {
      printf("FAILED: %s, %s: %s\n", kernels->name, where.c_str(), failure.what.c_str());
      return 1;
    }
    printf("%s: %d cases\n", kernels->name, cases);
  }
  if (passed == 0) {
    printf("FAILED: nothing was run; is there an instruction set '%s' here?\n", target.c_str());
    return 1;
  }
  printf("all %d cases passed\n", passed);
  return 0;
}
