// A trained capsule network in plain JavaScript: convolution, primary capsules, routing, class capsules, decoder.
// Shape letters as in the library: I children, J parents, D and E their dimensions, P places of a convolution.
// Weights are rows of int8 with one scale a row; activations are 32-bit numbers, sums are of 64 bits.
"use strict";
const capsnet = (() => {
  // Return the network that `spec` describes; text: base64 of its numbers, which the entries of spec.tensors cut.
  function load(spec, text) {
    const binary = atob(text), bytes = new Uint8Array(binary.length);
    for (let n = 0; n < binary.length; n++) bytes[n] = binary.charCodeAt(n);
    const tensors = {};
    for (const { name, rows, columns, offset } of spec.tensors) {
      if (!rows) {  // numbers as they are
        tensors[name] = new Float32Array(bytes.buffer, offset, columns);
        continue;
      }
      const scales = new Float32Array(bytes.buffer, offset, rows);
      const whole = new Int8Array(bytes.buffer, offset + 4 * rows, rows * columns);
      const values = tensors[name] = new Float32Array(rows * columns);
      for (let row = 0, n = 0; row < rows; row++)
        for (const end = n + columns; n < end; n++) values[n] = scales[row] * whole[n];
    }
    return { spec, tensors };
  }

  // Return what the network sees of pixels [C, H, W] in [0, 1].
  function seen(network, pixels) {
    const { standardise, mean, std, image_shape: [channels, height, width] } = network.spec;
    const found = new Float32Array(pixels), places = height * width;
    if (standardise) {
      const middle = found.reduce((sum, value) => sum + value, 0) / found.length;
      const variance = found.reduce((sum, value) => sum + (value - middle) ** 2, 0) / found.length;
      const spread = Math.max(Math.sqrt(variance), 1 / (255 * Math.sqrt(found.length)));
      return found.map(value => (value - middle) / spread);
    }
    for (let n = 0; mean.length && n < channels * places; n++) {
      const channel = Math.floor(n / places);
      found[n] = (found[n] - mean[channel]) / std[channel];
    }
    return found;
  }

  // Return the side of a convolution's output, and the zeros before its input.
  function side(input, { kernel, stride, same }) {
    if (!same) return [Math.floor((input - kernel) / stride) + 1, 0];
    const output = Math.ceil(input / stride);
    return [output, Math.floor(Math.max((output - 1) * stride + kernel - input, 0) / 2)];
  }

  // Convolve x [C, H, W]: return [C', P] and its sides. `pause` is awaited between channels.
  async function convolve(x, [channels, height, width], weight, bias, layer, pause) {
    const { kernel, stride, scale } = layer;
    const [rows, top] = side(height, layer), [columns, left] = side(width, layer);
    const places = rows * columns, length = channels * kernel * kernel, outputs = bias.length;
    const padded = 4 * Math.ceil(places / 4);  // four places at a time share what is read of the weights
    const patches = new Float32Array(padded * length);
    for (let row = 0, n = 0; row < rows; row++)
      for (let column = 0; column < columns; column++)
        for (let c = 0; c < channels; c++)
          for (let ky = 0; ky < kernel; ky++)
            for (let kx = 0; kx < kernel; kx++, n++) {
              const y = row * stride + ky - top, x_ = column * stride + kx - left;
              if (y >= 0 && y < height && x_ >= 0 && x_ < width) patches[n] = x[(c * height + y) * width + x_];
            }
    const found = new Float32Array(outputs * places);
    for (let output = 0; output < outputs; output++) {
      const own = weight.subarray(output * length, (output + 1) * length);
      for (let place = 0; place < padded; place += 4) {
        let a = 0, b = 0, c = 0, d = 0;
        for (let n = 0, at = place * length; n < length; n++, at++) {
          const w = own[n];
          a += w * patches[at];
          b += w * patches[at + length];
          c += w * patches[at + 2 * length];
          d += w * patches[at + 3 * length];
        }
        const sums = [a, b, c, d];
        for (let n = 0; n < 4 && place + n < places; n++)
          found[output * places + place + n] = scale * sums[n] + bias[output];
      }
      if (pause) await pause();
    }
    return [found, [outputs, rows, columns]];
  }

  // Squash vectors of `dim` numbers, `step` apart, in place: v = s |s| / (1 + |s|^2).
  function squash(values, first, dim, step) {
    let square = 0;
    for (let d = 0, n = first; d < dim; d++, n += step) square += values[n] * values[n];
    const factor = Math.sqrt(square) / (1 + square);
    for (let d = 0, n = first; d < dim; d++, n += step) values[n] *= factor;
  }

  // Return the child poses [D, I] of pixels [C, H, W] in [0, 1].
  async function children(network, pixels, pause) {
    const { spec, tensors } = network;
    const [features, shape] = await convolve(
      seen(network, pixels), spec.image_shape, tensors["conv.weight"], tensors["conv.bias"], spec.conv, pause);
    for (let n = 0; n < features.length; n++) if (features[n] < 0) features[n] = 0;
    const primary = "primary_capsules.conv";
    const [poses] = await convolve(
      features, shape, tensors[`${primary}.weight`], tensors[`${primary}.bias`], spec.primary, pause);
    const number = poses.length / spec.child_dim;
    for (let i = 0; i < number; i++) squash(poses, i, spec.child_dim, number);
    return poses;
  }

  // Return the votes [J, E, I] of child poses [D, I].
  function vote(network, poses) {
    const weights = network.tensors["class_capsules.packed_weights"], dim = network.spec.child_dim;
    const number = poses.length / dim, votes = new Float32Array(weights.length / dim);
    for (let row = 0, w = 0; row < votes.length; row += number)
      for (let d = 0; d < dim; d++)
        for (let i = 0; i < number; i++, w++) votes[row + i] += weights[w] * poses[d * number + i];
    return votes;
  }

  // Route votes [J, E, I] (paper, procedure 1): return parent poses [J, E] and lengths [J] after each iteration.
  function route(network, votes, iterations) {
    const { spec, tensors } = network, parents = spec.classes.length, dim = spec.parent_dim;
    const number = votes.length / (parents * dim);
    const bias = tensors["class_capsules.bias"], priors = tensors["class_capsules.log_priors"];
    const logits = new Float32Array(parents * number), coupling = new Float32Array(parents * number);
    if (priors) for (let n = 0; n < logits.length; n++) logits[n] = priors[(n % number) * parents + Math.floor(n / number)];
    let poses = new Float32Array(parents * dim);
    const lengths = [];
    for (let iteration = 0; iteration < iterations; iteration++) {
      if (iteration) agree(votes, poses, logits, dim, number);
      couple(logits, coupling, parents, number, spec.none_of_the_above);
      poses = new Float32Array(parents * dim);
      for (let row = 0, n = 0; row < parents * dim; row++) {
        let total = bias ? bias[row] : 0;
        const first = Math.floor(row / dim) * number;
        for (let i = 0; i < number; i++, n++) total += coupling[first + i] * votes[n];
        poses[row] = total;
      }
      for (let j = 0; j < parents; j++) squash(poses, j * dim, dim, 1);
      lengths.push(Array.from({ length: parents }, (_, j) => Math.hypot(...poses.subarray(j * dim, (j + 1) * dim))));
    }
    return { poses, lengths };
  }

  // Add to the logits [J, I] how far each vote agrees with its parent.
  function agree(votes, poses, logits, dim, number) {
    for (let row = 0, n = 0; row < poses.length; row++) {
      const first = Math.floor(row / dim) * number;
      for (let i = 0; i < number; i++, n++) logits[first + i] += votes[n] * poses[row];
    }
  }

  // The softmax of each child over the parents, and with `none` over one more choice of logit 0.
  function couple(logits, coupling, parents, number, none) {
    for (let i = 0; i < number; i++) {
      let most = none ? 0 : -Infinity;
      for (let j = 0; j < parents; j++) most = Math.max(most, logits[j * number + i]);
      let sum = none ? Math.exp(-most) : 0;
      for (let j = 0; j < parents; j++) sum += coupling[j * number + i] = Math.exp(logits[j * number + i] - most);
      for (let j = 0; j < parents; j++) coupling[j * number + i] /= sum;
    }
  }

  // Return what the decoder draws of the pose [E] of class j alone: pixels [C, H, W] in [0, 1].
  function decode(network, pose, j) {
    const dense = (name, x, columns, first, activate) => {
      const weight = network.tensors[`decoder.layers.${name}.weight`], bias = network.tensors[`decoder.layers.${name}.bias`];
      return bias.map((start, row) => {
        let sum = start;
        for (let n = 0, at = row * columns + first; n < x.length; n++, at++) sum += weight[at] * x[n];
        return activate(sum);
      });
    };
    const relu = value => Math.max(value, 0), dim = pose.length;
    const first = dense(0, pose, network.spec.classes.length * dim, j * dim, relu);
    const second = dense(2, first, first.length, 0, relu);
    return dense(4, second, second.length, 0, value => 1 / (1 + Math.exp(-value)));
  }

  // Return votes, poses and lengths of pixels [C, H, W] in [0, 1]; `pause`, if given, is awaited now and then.
  async function read(network, pixels, iterations = network.spec.iterations, pause = undefined) {
    const votes = vote(network, await children(network, pixels, pause));
    return { votes, ...route(network, votes, iterations) };
  }

  // Return the numbers of the `num` largest values, the largest first.
  function largest(values, num) {
    return Array.from(values.keys()).sort((a, b) => values[b] - values[a]).slice(0, num);
  }

  return { load, read, route, decode, largest };
})();
