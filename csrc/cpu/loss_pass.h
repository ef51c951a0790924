// Pass 2 of the CPLearn loss: all rows of a group of codes at once, so that p̄ and the prior's derivative are complete
// there, and with them the weights of the gradient (reference.cplearn_loss; the identities are in docs/mathematics.md).
//
// No inclusion guard: see vector.h.

constexpr float kSmallestMean = 1e-37f;  // keeps a logarithm finite where a mean underflows
constexpr double kLn2 = 0.693147180559945309417;

// Tiles of the two views lie one after the other. Tile t of view 0 and tile t of view 1 hold the same images and belong
// to one worker, so that the partner's u is at hand; an item of the schedule is such a pair in one slab.
//
// A round has three steps with a barrier between them: (probabilities) each item's p and u; (columns) each code's p̄
// and g from all rows; (gradients) each item's sums. The columns are cut into units of a fixed size, each summed by one
// worker, so that the prior does not depend on the number of threads either.
template <Prior kPrior>
class LossPass {
 public:
  LossPass(const HadamardCodes& codes, const Tiles& rows, const RowSums& sums, const LossRequest& request, int threads)
      : codes_(codes),
        rows_(rows),
        sums_(sums),
        request_(request),
        threads_(threads),
        plan_(codes, rows.per_batch),
        tile_(plan_.tile_floats()),
        group_(plan_.group * tile_),
        group_codes_(plan_.group * plan_.block),
        units_(divide_up(group_codes_, kColumnUnit)),
        p_(2 * plan_.items() * group_),
        u_(2 * plan_.items() * group_),
        g_(2 * plan_.slabs * group_codes_),
        column_max_(2 * plan_.slabs * group_codes_),
        masks_(2 * plan_.slabs * group_codes_),
        scratch_(threads * tile_),
        expected_(request.need_grad ? 2 * plan_.items() * tile_ : 0),
        pull_(request.need_grad ? 2 * plan_.items() * tile_ : 0),
        flushes_(request.need_grad && plan_.slab_blocks > plan_.flush_blocks()),
        flushed_expected_(flushes_ ? 2 * plan_.items() * tile_ : 0),
        flushed_pull_(flushes_ ? 2 * plan_.items() * tile_ : 0),
        mass_(2 * plan_.items() * kLanes),
        weight_sum_(2 * plan_.items() * kLanes),
        agreement_(2 * plan_.items() * kLanes),
        best_prior_weight_(rows.count * kLanes),
        best_partner_u_(rows.count * kLanes),
        prior_(2 * plan_.slabs * units_) {
    masks_.fill(0);
    expected_.fill(0.0f), pull_.fill(0.0f), flushed_expected_.fill(0.0), flushed_pull_.fill(0.0);
    mass_.fill(0.0), weight_sum_.fill(0.0), agreement_.fill(0.0), prior_.fill(0.0);
  }

  void run(LossResult& result) {
    in_parallel(threads_, [&](int64_t worker, int64_t workers) {
      const Share items(plan_.items(), worker, workers);
      const Share units(2 * plan_.slabs * units_, worker, workers);
      make_masks(0, worker, workers);
      barrier_.wait(workers);
      for (int64_t round = 0; round < plan_.rounds; ++round) {
        for (int64_t item = items.begin; item < items.end; ++item) probabilities(item, round);
        barrier_.wait(workers);
        for (int64_t unit = units.begin; unit < units.end; ++unit) columns(unit, round);
        make_masks(round + 1, worker, workers);
        barrier_.wait(workers);
        for (int64_t item = items.begin; item < items.end; ++item) gradients(item, round, scratch_ + worker * tile_);
      }
    });
    finish(result);
  }

 private:
  static constexpr int64_t kColumnUnit = 64;

  // Masks of two rounds are kept: the next round's are made while this round's are still in use.
  int32_t* mask(int64_t round, int64_t slab) { return masks_ + (round % 2 * plan_.slabs + slab) * group_codes_; }
  // Arrays of one view of an item: p, u (`size` = a group) and the accumulators (`size` = a tile).
  int64_t at(int view, int64_t item, int64_t size) const { return (view * plan_.items() + item) * size; }
  int64_t columns_at(int view, int64_t slab) const { return (view * plan_.slabs + slab) * group_codes_; }

  void make_masks(int64_t round, int64_t worker, int64_t workers) {
    const Share mine(plan_.slabs * plan_.group, worker, workers);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t slab = i / plan_.group, b = i % plan_.group;
      if (b >= plan_.blocks_in(slab, round)) continue;
      make_sign_masks(codes_, plan_.first_block(slab, round) + b, mask(round, slab) + b * plan_.block);
    }
  }

  void probabilities(int64_t item, int64_t round) {
    const int64_t slab = item / plan_.tiles, tile = item % plan_.tiles;
    for (int view = 0; view < 2; ++view) {
      const int64_t row_tile = view * plan_.tiles + tile;
      for (int64_t b = 0; b < plan_.blocks_in(slab, round); ++b) {
        float* p = p_ + (at(view, item, group_) + b * tile_);
        float* u = u_ + (at(view, item, group_) + b * tile_);
        SignedTile source{rows_.tile(row_tile), mask(round, slab) + b * plan_.block};
        StoreProbabilities sink{load(sums_.best + row_tile * kLanes), load(sums_.inverse_sum + row_tile * kLanes),
                                load(sums_.log2_sum + row_tile * kLanes), p, u,
                                plan_.codes_in(plan_.first_block(slab, round) + b)};
        walsh_hadamard(plan_.log2_block, source, sink, u);
      }
    }
  }

  void columns(int64_t unit, int64_t round) {
    const int view = int(unit / (plan_.slabs * units_));
    const int64_t slab = unit / units_ % plan_.slabs, begin = unit % units_ * kColumnUnit;
    const int64_t blocks = plan_.blocks_in(slab, round), first_code = plan_.first_block(slab, round) * plan_.block;
    const int64_t written = smaller(begin + kColumnUnit, blocks * plan_.block);
    const int64_t existing = smaller(written, plan_.num_codes - first_code);
    const int64_t end = existing > begin ? existing : begin;
    float* g = g_ + columns_at(view, slab);
    float* column_max = column_max_ + columns_at(view, slab);
    const float* q = request_.prior_probs == nullptr ? nullptr : request_.prior_probs + first_code;
    const int64_t first = at(view, slab * plan_.tiles, group_);
    if (kPrior == Prior::kReverseKL) prior_[unit] += reverse_kl(p_ + first, begin, end, q, g);
    else prior_[unit] += cross_entropy(u_ + first, begin, end, q, g, column_max);
    for (int64_t j = end; j < written; ++j) g[j] = column_max[j] = 0;  // codes that do not exist weigh nothing
  }

  // `sum_j p̄_j log(p̄_j / q_j)` over codes begin … end - 1, and g_j = log(p̄_j / q_j).
  double reverse_kl(const float* p, int64_t begin, int64_t end, const float* q, float* g) {
    double prior = 0;
    for (int64_t j = begin; j < end; j += kLanes) {
      const int64_t count = smaller(kLanes, end - j);
      Vec mean = broadcast(0.0f);
      for (int64_t i = 0; i < count; ++i) {
        Vec total = broadcast(0.0f);
        for (int64_t t = 0; t < plan_.tiles; ++t) total = total + load(p + t * group_ + (j + i) * kLanes);
        mean[i] = sum_lanes(total) / float(rows_.rows);
      }
      const Vec positive = vmax(mean, broadcast(kSmallestMean));
      Vec log_ratio = log2_positive(positive * broadcast(float(plan_.num_codes))) * broadcast(float(kLn2));
      for (int64_t i = 0; i < count; ++i) {
        if (q != nullptr) log_ratio[i] = float(log(double(positive[i]) / double(q[j + i])));
        g[j + i] = log_ratio[i];
        prior += double(mean[i]) * log_ratio[i];
      }
    }
    return prior;
  }

  // `-sum_j q_j log p̄_j`, and g_j such that `-q_j exp(log p_ij - log p̄_j) = exp2(u_ij - column_max_j) g_j`: never
  // through 1 / p̄_j, which overflows on aligned codes.
  double cross_entropy(const float* u, int64_t begin, int64_t end, const float* q, float* g, float* column_max) {
    double prior = 0;
    for (int64_t j = begin; j < end; ++j) {
      Vec best = load(u + j * kLanes);
      for (int64_t t = 1; t < plan_.tiles; ++t) best = vmax(best, load(u + t * group_ + j * kLanes));
      const float top = max_lanes(best);
      Vec total = broadcast(0.0f);
      for (int64_t t = 0; t < plan_.tiles; ++t) {
        total = total + exp2_nonpositive(load(u + t * group_ + j * kLanes) - broadcast(top));
      }
      const double sum = sum_lanes(total), rows = double(rows_.rows);
      const double probability = q != nullptr ? double(q[j]) : 1.0 / double(plan_.num_codes);
      column_max[j] = top;
      g[j] = float(-probability * rows / sum);
      prior -= probability * (kLn2 * (top + log2(sum)) - log(rows));
    }
    return prior;
  }

  // What a row's best code contributes is kept aside, to be added in double precision at the end: near the optimum it
  // is nearly all of B and E, and cancels against sigma B and t B down to the small rest that the other codes give.
  void set_best_aside(int view, int64_t item, int64_t round, int64_t b) {
    const int64_t slab = item / plan_.tiles, lane0 = (view * plan_.tiles + item % plan_.tiles) * kLanes;
    const int64_t first_code = (plan_.first_block(slab, round) + b) * plan_.block;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t k = sums_.code[lane0 + lane] - first_code;
      if (k < 0 || k >= plan_.block || rows_.is_padding(lane0 + lane)) continue;
      const int64_t here = b * tile_ + k * kLanes + lane, column = columns_at(view, slab) + b * plan_.block + k;
      float& p = p_[at(view, item, group_) + here];
      double share = 1 / (1 + sums_.others[lane0 + lane]);
      if (kPrior == Prior::kCrossEntropy) share = exp2(double(u_[at(view, item, group_) + here]) - column_max_[column]);
      best_prior_weight_[lane0 + lane] = share * g_[column];
      best_partner_u_[lane0 + lane] = u_[at(1 - view, item, group_) + here];
      p = -0.0f;
    }
  }

  void gradients(int64_t item, int64_t round, float* scratch) {
    const int64_t slab = item / plan_.tiles;
    for (int64_t b = 0; b < plan_.blocks_in(slab, round); ++b) {
      for (int view = 0; view < 2; ++view) set_best_aside(view, item, round, b);
      for (int view = 0; view < 2; ++view) {
        float* p = p_ + (at(view, item, group_) + b * tile_);
        const int64_t columns = columns_at(view, slab) + b * plan_.block;
        GradientWeights<kPrior> weights{p,
                                        u_ + (at(view, item, group_) + b * tile_),
                                        u_ + (at(1 - view, item, group_) + b * tile_),
                                        g_ + columns,
                                        column_max_ + columns,
                                        broadcast(float(request_.beta * kLn2))};
        if (request_.need_grad) {
          const int32_t* signs = mask(round, slab) + b * plan_.block;
          AddSigned to_pull{pull_ + at(view, item, tile_), signs};
          AddSigned to_expected{expected_ + at(view, item, tile_), signs};
          walsh_hadamard(plan_.log2_block, weights, to_pull, scratch);
          PlainTile plain{p};
          walsh_hadamard(plan_.log2_block, plain, to_expected, p);
        } else {
          for (int64_t k = 0; k < plan_.block; ++k) {
            weights(k);
            if (k % 8 == 7) weights.group_done(k / 8);
          }
        }
        const Vec mass = weights.mass.total(), sum = weights.weight_sum.total(), agreement = weights.agreement.total();
        for (int lane = 0; lane < kLanes; ++lane) {
          mass_[at(view, item, kLanes) + lane] += mass[lane];
          weight_sum_[at(view, item, kLanes) + lane] += sum[lane];
          agreement_[at(view, item, kLanes) + lane] += agreement[lane];
        }
        if (flushes_ && (round * plan_.group + b + 1) % plan_.flush_blocks() == 0) {
          flush(expected_ + at(view, item, tile_), flushed_expected_ + at(view, item, tile_));
          flush(pull_ + at(view, item, tile_), flushed_pull_ + at(view, item, tile_));
        }
      }
    }
  }

  void flush(float* recent, double* total) {
    for (int64_t i = 0; i < tile_; ++i) total[i] += recent[i], recent[i] = 0;
  }

  // A sum over slabs of per-item double sums, or of an accumulator and what was flushed from it.
  double total(const Buffer<double>& sums, int view, int64_t tile, int64_t size, int64_t i) const {
    double value = 0;
    for (int64_t s = 0; s < plan_.slabs; ++s) value += sums[at(view, s * plan_.tiles + tile, size) + i];
    return value;
  }
  double total(const Buffer<float>& recent, const Buffer<double>& sums, int view, int64_t tile, int64_t i) const {
    double value = flushes_ ? total(sums, view, tile, tile_, i) : 0;
    for (int64_t s = 0; s < plan_.slabs; ++s) value += recent[at(view, s * plan_.tiles + tile, tile_) + i];
    return value;
  }

  // `sum_j p_ij u'_ij` in natural units, the best code included.
  double agreement(int view, int64_t row) const {
    const int64_t lane = rows_.lane_of(view, row);
    const double others = total(agreement_, view, row / kLanes, kLanes, row % kLanes);
    return kLn2 * (others + best_partner_u_[lane] / (1 + sums_.others[lane]));
  }

  void finish(LossResult& result) {
    double agreement_sum = 0, prior = 0;
    for (int view = 0; view < 2; ++view) {
      for (int64_t row = 0; row < rows_.rows; ++row) agreement_sum += agreement(view, row);
    }
    for (int64_t i = 0; i < 2 * plan_.slabs * units_; ++i) prior += prior_[i];
    result.invariance = -agreement_sum / double(2 * rows_.rows);
    result.prior = prior / 2;
    if (request_.need_grad) write_gradients(result.grad);
  }

  // `1/(2 n temperature) [E - (sigma - beta t) B + beta (B - B')]`, B' the partner's, each row's best code put back.
  // B is divided by the sum of the rounded p: `sum_j x_j (w_j - B)` needs weights that sum to 1, and
  // `sigma - beta t` is the sum of the rounded x: both matter where equal codes share a row's mass.
  void write_gradients(float* const (&grad)[2]) {
    Buffer<int32_t> best_signs(2 * threads_ * plan_.block);
    best_signs.fill(0);
    in_parallel(threads_, [&](int64_t worker, int64_t workers) {
      const Share mine(rows_.rows, worker, workers);
      int32_t* const signs[2] = {best_signs + 2 * worker * plan_.block, best_signs + (2 * worker + 1) * plan_.block};
      for (int64_t row = mine.begin; row < mine.end; ++row) write_gradient(row, signs, grad);
    });
  }

  // `signs`: room for the sign masks of the row's best codes, zero where a block has no coordinate.
  void write_gradient(int64_t row, int32_t* const (&signs)[2], float* const (&grad)[2]) {
    const double scale = 1 / (2.0 * double(rows_.rows) * request_.temperature), beta = request_.beta;
    const int64_t tile = row / kLanes, lane = row % kLanes;
    double best_p[2], mass[2], best_weight[2], weight_sum[2];
    int64_t code_in_block[2];
    for (int view = 0; view < 2; ++view) {
      const int64_t i = rows_.lane_of(view, row);
      best_p[view] = 1 / (1 + sums_.others[i]);
      mass[view] = total(mass_, view, tile, kLanes, lane) + best_p[view];
      best_weight[view] = best_prior_weight_[i] - beta * kLn2 * best_p[view] * best_partner_u_[i];
      weight_sum[view] = total(weight_sum_, view, tile, kLanes, lane) + best_weight[view];
      code_in_block[view] = sums_.code[i] % plan_.block;
      make_sign_masks(codes_, sums_.code[i] / plan_.block, signs[view]);
    }
    for (int64_t k = 0; k < codes_.num_features; ++k) {
      const int64_t place = codes_.positions[k], i = place * kLanes + lane;
      double best_code[2], expected[2];
      for (int view = 0; view < 2; ++view) {
        const bool odd = __builtin_parityll(uint64_t(place & code_in_block[view]));
        best_code[view] = odd != (signs[view][place] != 0) ? -1 : 1;
        expected[view] = total(expected_, flushed_expected_, view, tile, i) + best_p[view] * best_code[view];
        expected[view] /= mass[view];
      }
      for (int view = 0; view < 2; ++view) {
        const double pull = total(pull_, flushed_pull_, view, tile, i) + best_weight[view] * best_code[view];
        const double b = expected[view];
        grad[view][row * codes_.num_features + k] =
            float(scale * (pull - weight_sum[view] * b + beta * (b - expected[1 - view])));
      }
    }
  }

  const HadamardCodes& codes_;
  const Tiles& rows_;
  const RowSums& sums_;
  const LossRequest& request_;
  const int threads_;
  const Schedule plan_;
  const int64_t tile_, group_, group_codes_, units_;
  Buffer<float> p_, u_, g_, column_max_;
  Buffer<int32_t> masks_;
  Buffer<float> scratch_, expected_, pull_;
  const bool flushes_;
  Buffer<double> flushed_expected_, flushed_pull_, mass_, weight_sum_, agreement_, best_prior_weight_, best_partner_u_;
  Buffer<double> prior_;
  Barrier barrier_;
};

static void cplearn_loss(const HadamardCodes& codes, const Batch (&views)[2], const LossRequest& request, int threads,
                         LossResult& result) {
  const Tiles rows(codes, views, 2, kLog2E / request.temperature, threads);
  const RowSums sums(rows.count * kLanes);
  row_pass(codes, rows, threads, sums);
  if (request.prior == Prior::kReverseKL) LossPass<Prior::kReverseKL>(codes, rows, sums, request, threads).run(result);
  else LossPass<Prior::kCrossEntropy>(codes, rows, sums, request, threads).run(result);
}
