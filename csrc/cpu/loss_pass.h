// Pass 2 of the CPLearn loss: all rows of a group of codes at once, so that p̄ and the prior's derivative are complete
// there, and with them the weights of the gradient (reference.cplearn_loss; the identities are in docs/mathematics.md).
//
// No inclusion guard: see vector.h.

// Tiles of the two views lie one after the other. Tile t of view 0 and tile t of view 1 hold the same images and belong
// to one worker, so that the partner's u is at hand; an item of the schedule is such a pair in one slab.
//
// A round has three steps with a barrier between them: (probabilities) each item's p and u; (columns) each code's p̄
// and g from all rows; (gradients) each item's sums. The columns are cut into units of a fixed size, each summed by one
// worker, so that the prior does not depend on the number of threads either.
template <class Blocks, Prior kPrior>
class LossPass {
 public:
  LossPass(const Blocks& dictionary, const Tiles& rows, const RowSums& sums, const LossRequest& request, const Run& run)
      : dictionary_(dictionary),
        rows_(rows),
        sums_(sums),
        request_(request),
        run_(run),
        plan_(dictionary, rows.per_batch),
        tile_(plan_.block * kLanes),
        group_(padded(plan_.group * tile_)),
        group_codes_(plan_.group * plan_.block),
        units_(divide_up(group_codes_, kColumnUnit)),
        places_(dictionary.places * kLanes),
        sums_floats_(padded(places_)),
        scratch_floats_(padded(larger(tile_, places_))),
        p_(2 * plan_.items() * group_),
        u_(2 * plan_.items() * group_, 3),
        g_(2 * plan_.slabs * group_codes_),
        column_max_(2 * plan_.slabs * group_codes_),
        signs_(2 * plan_.slabs * plan_.group * dictionary.signs),
        scratch_(2 * run.threads * scratch_floats_, 5),
        expected_(request.need_grad ? 2 * plan_.items() * sums_floats_ : 0, 7),
        pull_(request.need_grad ? 2 * plan_.items() * sums_floats_ : 0, 9),
        flushes_(request.need_grad && plan_.slab_blocks > dictionary.flush_blocks),
        flushed_expected_(flushes_ ? 2 * plan_.items() * sums_floats_ : 0),
        flushed_pull_(flushes_ ? 2 * plan_.items() * sums_floats_ : 0),
        mass_(2 * plan_.items() * kLanes),
        weight_sum_(2 * plan_.items() * kLanes),
        agreement_(2 * plan_.items() * kLanes),
        best_prior_weight_(rows.count * kLanes),
        best_partner_u_(rows.count * kLanes),
        prior_(2 * plan_.slabs * units_) {
    expected_.fill(0.0f), pull_.fill(0.0f), flushed_expected_.fill(0.0), flushed_pull_.fill(0.0);
    mass_.fill(0.0), weight_sum_.fill(0.0), agreement_.fill(0.0), prior_.fill(0.0);
  }

  void run(LossResult& result) {
    Interruption interruption(run_);
    in_parallel(run_.threads, [&](int64_t worker, int64_t workers) {
      const Share items(plan_.items(), worker, workers);
      const Share units(2 * plan_.slabs * units_, worker, workers);
      prepare(0, worker, workers);
      barrier_.wait(workers);
      for (int64_t round = 0; round < plan_.rounds && !interruption.before(worker, round); ++round) {
        for (int64_t item = items.begin; item < items.end; ++item) probabilities(item, round);
        barrier_.wait(workers);
        for (int64_t unit = units.begin; unit < units.end; ++unit) columns(unit, round);
        prepare(round + 1, worker, workers);
        barrier_.wait(workers);
        for (int64_t item = items.begin; item < items.end; ++item) gradients(item, round, scratch(worker));
      }
    });
    interruption.throw_if_interrupted();
    finish(result);
  }

 private:
  // Two scratch arrays of a worker, one after the other.
  float* scratch(int64_t worker) const { return scratch_ + 2 * worker * scratch_floats_; }
  // Signs of two rounds are kept: the next round's are made while this round's are still in use.
  uint32_t* signs(int64_t round, int64_t slab, int64_t b) const {
    return signs_ + ((round % 2 * plan_.slabs + slab) * plan_.group + b) * dictionary_.signs;
  }
  // Arrays of one view of an item: p, u (`size` = group_) and the sums (`size` = sums_floats_).
  int64_t at(int view, int64_t item, int64_t size) const { return (view * plan_.items() + item) * size; }
  int64_t columns_at(int view, int64_t slab) const { return (view * plan_.slabs + slab) * group_codes_; }

  void prepare(int64_t round, int64_t worker, int64_t workers) {
    const Share mine(plan_.slabs * plan_.group, worker, workers);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t slab = i / plan_.group, b = i % plan_.group;
      if (b >= plan_.blocks_in(slab, round)) continue;
      dictionary_.prepare(plan_.first_block(slab, round) + b, signs(round, slab, b), request_.need_grad);
    }
  }

  void probabilities(int64_t item, int64_t round) {
    const int64_t slab = item / plan_.tiles, tile = item % plan_.tiles;
    for (int view = 0; view < 2; ++view) {
      const int64_t row_tile = view * plan_.tiles + tile;
      for (int64_t b = 0; b < plan_.blocks_in(slab, round); ++b) {
        float* const u = u_ + (at(view, item, group_) + b * tile_);
        StoreProbabilities sink{load(sums_.best + row_tile * kLanes), load(sums_.inverse_sum + row_tile * kLanes),
                                load(sums_.log2_mean + row_tile * kLanes), p_ + (at(view, item, group_) + b * tile_), u,
                                plan_.codes_in(plan_.first_block(slab, round) + b)};
        dictionary_.logits(rows_.tile(row_tile), signs(round, slab, b), sink, u);
      }
    }
  }

  void columns(int64_t unit, int64_t round) {
    const int view = int(unit / (plan_.slabs * units_));
    const int64_t slab = unit / units_ % plan_.slabs, begin = unit % units_ * kColumnUnit;
    const int64_t blocks = plan_.blocks_in(slab, round), first_code = plan_.first_block(slab, round) * plan_.block;
    const int64_t written = smaller(begin + kColumnUnit, blocks * plan_.block);
    const int64_t existing = smaller(written, plan_.num_codes - first_code), end = larger(existing, begin);
    const float* q = request_.prior_probs == nullptr ? nullptr : request_.prior_probs + first_code;
    const int64_t first = at(view, slab * plan_.tiles, group_);
    const Columns here{plan_.tiles, group_, rows_.rows, plan_.num_codes, q, g_ + columns_at(view, slab),
                       column_max_ + columns_at(view, slab)};
    if (kPrior == Prior::kReverseKL) prior_[unit] += here.reverse_kl(p_ + first, begin, end);
    else prior_[unit] += here.cross_entropy(u_ + first, begin, end);
    // Codes that do not exist weigh nothing.
    for (int64_t j = end; j < written; ++j) here.g[j] = here.column_max[j] = 0;
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
        float* const p = p_ + (at(view, item, group_) + b * tile_);
        const int64_t columns = columns_at(view, slab) + b * plan_.block;
        GradientWeights<kPrior> weights{p,
                                        u_ + (at(view, item, group_) + b * tile_),
                                        u_ + (at(1 - view, item, group_) + b * tile_),
                                        g_ + columns,
                                        column_max_ + columns,
                                        broadcast(float(request_.beta * kLn2))};
        if (request_.need_grad) {
          const uint32_t* const codes = signs(round, slab, b);
          PlainTile plain{p};
          add(dictionary_.add_codes(weights, codes, pull_ + at(view, item, sums_floats_), scratch),
              weight_sum_ + at(view, item, kLanes));
          add(dictionary_.add_codes(plain, codes, expected_ + at(view, item, sums_floats_), p),
              mass_ + at(view, item, kLanes));
        } else {
          dictionary_.only_read(weights);
        }
        add(weights.agreement.total(), agreement_ + at(view, item, kLanes));
        if (flushes_ && (round * plan_.group + b + 1) % dictionary_.flush_blocks == 0) {
          flush(expected_ + at(view, item, sums_floats_), flushed_expected_ + at(view, item, sums_floats_));
          flush(pull_ + at(view, item, sums_floats_), flushed_pull_ + at(view, item, sums_floats_));
        }
      }
    }
  }

  static void add(Vec recent, double* total) {
    for (int lane = 0; lane < kLanes; ++lane) total[lane] += recent[lane];
  }

  void flush(float* recent, double* total) const {
    for (int64_t i = 0; i < places_; ++i) total[i] += recent[i], recent[i] = 0;
  }

  // A per-lane double sum over slabs.
  double total(const Buffer<double>& sums, int view, int64_t row) const {
    const int64_t tile = row / kLanes, lane = row % kLanes;
    double value = 0;
    for (int64_t s = 0; s < plan_.slabs; ++s) value += sums[at(view, s * plan_.tiles + tile, kLanes) + lane];
    return value;
  }

  void finish(LossResult& result) {
    double agreement = 0, prior = 0;  // sum_j p_ij log(c p'_ij), the best code included
    for (int view = 0; view < 2; ++view) {
      for (int64_t row = 0; row < rows_.rows; ++row) {
        const int64_t lane = rows_.lane_of(view, row);
        agreement += kLn2 * (total(agreement_, view, row) + best_partner_u_[lane] / (1 + sums_.others[lane]));
      }
    }
    for (int64_t i = 0; i < 2 * plan_.slabs * units_; ++i) prior += prior_[i];
    result.invariance = log(double(plan_.num_codes)) - agreement / double(2 * rows_.rows);
    result.prior = prior / 2;
    if (!request_.need_grad) return;
    in_parallel(run_.threads, [&](int64_t worker, int64_t workers) {
      const Share mine(plan_.tiles, worker, workers);
      for (int64_t tile = mine.begin; tile < mine.end; ++tile) {
        write_gradients(tile, scratch(worker), result.grad);
      }
    });
  }

  // What the gradients of a tile's rows are made of besides their sums over codes.
  struct RowScalars {
    double best_p[kLanes], inverse_mass[kLanes], best_weight[kLanes], weight_sum[kLanes];
  };

  // `1/(2 n temperature) [E - (sigma - beta t) B + beta (B - B')]`, B' the partner's, each row's best code put back:
  // best_share and what follows it in formulas.h.
  // `out`: two scratch arrays, for the best codes of the two views and then for the gradients.
  void write_gradients(int64_t tile, float* out, float* const (&grad)[2]) {
    const double scale = 1 / (2.0 * double(rows_.rows) * request_.temperature), beta = request_.beta;
    RowScalars scalars[2] = {};
    for (int view = 0; view < 2; ++view) {
      dictionary_.write_codes(sums_.code + rows_.lane_of(view, tile * kLanes), out + view * scratch_floats_);
      RowScalars& to = scalars[view];
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t row = tile * kLanes + lane, i = rows_.lane_of(view, row);
        if (row >= rows_.rows) continue;  // nothing is written for it
        const BestShare share = best_share(sums_.others[i], total(mass_, view, row), total(weight_sum_, view, row),
                                           best_prior_weight_[i], beta, best_partner_u_[i]);
        to.best_p[lane] = share.p, to.inverse_mass[lane] = share.inverse_mass;
        to.best_weight[lane] = share.weight, to.weight_sum[lane] = share.weight_sum;
      }
    }
    for (int64_t i = 0; i < places_; i += kLanes) {
      VecDouble expected[2], pull[2];
#pragma GCC unroll 2
      for (int view = 0; view < 2; ++view) {
        const RowScalars& from = scalars[view];
        const VecDouble code = widened(load(out + view * scratch_floats_ + i));
        expected[view] = sum_over_slabs(expected_, flushed_expected_, view, tile, i);
        expected[view] =
            expected_coordinate(expected[view], load_doubles(from.best_p), load_doubles(from.inverse_mass), code);
        pull[view] = sum_over_slabs(pull_, flushed_pull_, view, tile, i) + load_doubles(from.best_weight) * code;
      }
#pragma GCC unroll 2
      for (int view = 0; view < 2; ++view) {
        const VecDouble sum = gradient_coordinate(pull[view], load_doubles(scalars[view].weight_sum), expected[view],
                                                  expected[1 - view], beta);
        store(out + view * scratch_floats_ + i, narrowed(scale * sum));
      }
    }
    for (int view = 0; view < 2; ++view) {
      store_rows(dictionary_, out + view * scratch_floats_, tile * kLanes, rows_.rows, grad[view]);
    }
  }

  // One place of an accumulator, what was flushed from it included.
  CPK_INLINE VecDouble sum_over_slabs(const Buffer<float>& recent, const Buffer<double>& flushed, int view, int64_t tile,
                           int64_t i) const {
    VecDouble sum;
    for (int64_t s = 0; s < plan_.slabs; ++s) {
      const int64_t from = at(view, s * plan_.tiles + tile, sums_floats_) + i;
      sum = sum + widened(load(recent + from));
      if (flushes_) sum = sum + load_doubles(flushed + from);
    }
    return sum;
  }

  const Blocks& dictionary_;
  const Tiles& rows_;
  const RowSums& sums_;
  const LossRequest& request_;
  const Run& run_;
  const Schedule plan_;
  const int64_t tile_, group_, group_codes_, units_, places_, sums_floats_, scratch_floats_;
  Buffer<float> p_, u_, g_, column_max_;
  Buffer<uint32_t> signs_;
  Buffer<float> scratch_, expected_, pull_;
  const bool flushes_;
  Buffer<double> flushed_expected_, flushed_pull_, mass_, weight_sum_, agreement_, best_prior_weight_, best_partner_u_;
  Buffer<double> prior_;
  Barrier barrier_;
};

template <class Blocks>
static void cplearn_loss(const Blocks& dictionary, const Batch (&views)[2], const LossRequest& request, const Run& run,
                         LossResult& result) {
  const Tiles rows(dictionary, views, 2, kLog2E / request.temperature, run.threads);
  if (!rows.finite) {
    result.invariance = result.prior = NAN;
    for (int64_t i = 0; request.need_grad && i < views[0].rows * dictionary.num_features; ++i) {
      result.grad[0][i] = result.grad[1][i] = NAN;
    }
    return;
  }
  const RowSums sums(rows.count * kLanes);
  row_pass(dictionary, rows, run, sums);
  if (request.prior == Prior::kReverseKL) {
    LossPass<Blocks, Prior::kReverseKL>(dictionary, rows, sums, request, run).run(result);
  } else {
    LossPass<Blocks, Prior::kCrossEntropy>(dictionary, rows, sums, request, run).run(result);
  }
}
