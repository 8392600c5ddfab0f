"""LoRA-Pro's step in PyTorch, written twice: the yardsticks of compare.py. Layout of PEFT: A is r x n, B is m x r."""

import functools

import torch
from torch import nn

FACTORS_SIZE, RATE, BETAS, EPS = 0.02, 1e-6, (0.9, 0.999), 1e-8
SCALE = 2  # alpha / r, on both sides


class ReleasedPro:
    """By the formulas that its authors released (mrflogs/LoRA-Pro, peta/optim.py), operation by operation.

    Different, in their favour: no m x m array for the projection, no moments in bfloat16, the base does not decay.
    """

    def __init__(self, mode, A, B, grad_A, grad_B):
        self.mode, self.A, self.B, self.gradients = mode, A.clone(), B.clone(), (grad_A, grad_B)
        self.count, self.moments = 0, {}

    def directions(self, grad_A, grad_B, sylvester):
        A, B, weight, one = self.A, self.B, 1 / SCALE**2, torch.eye(len(self.A), dtype=self.A.dtype)
        gram_A, gram_B = A @ A.T, B.T @ B
        inverse_A, inverse_B = torch.linalg.pinv(gram_A + 1e-8 * one), torch.linalg.pinv(gram_B + 1e-8 * one)
        step_A = weight * inverse_B @ grad_A
        step_B = weight * (grad_B - B @ (inverse_B @ (B.T @ grad_B))) @ inverse_A
        if not sylvester:
            return step_A, step_B
        # gram_B C + C gram_A = -step_A A^T by general complex eigendecompositions
        (left, U), (right, V) = torch.linalg.eig(gram_B), torch.linalg.eig(gram_A)
        inner = torch.linalg.solve(U, (-step_A @ A.T).to(U.dtype) @ V)
        C = (U @ (inner / (left[:, None] + right)) @ torch.linalg.inv(V)).real
        return step_A + C @ A, step_B - B @ C

    def adam(self, key, gradient):
        mean, square = self.moments.setdefault(key, (torch.zeros_like(gradient), torch.zeros_like(gradient)))
        mean.lerp_(gradient, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        root = (square.sqrt() / (1 - BETAS[1] ** self.count) ** 0.5).add_(EPS)
        return mean / (1 - BETAS[0] ** self.count) / root

    def __call__(self):
        self.count += 1
        steps = self.directions(*self.gradients, self.mode != "full")
        if self.mode == "efficient":
            steps = [self.adam(key, step) for key, step in enumerate(steps)]
        if self.mode == "full":
            g = self.adam(0, SCALE * (self.B @ steps[0] + steps[1] @ self.A))
            steps = self.directions(SCALE * self.B.T @ g, SCALE * g @ self.A.T, True)
        self.A.sub_(RATE * steps[0])
        self.B.sub_(RATE * steps[1])


class BestPro:
    """The same step (and mode factored, which is ours) as fast as we can write it in PyTorch.

    Two symmetric eigendecompositions a step, in one call and in double; few products, nothing n x m but the moments of
    mode full; fused AdamW. B^T G_B = G_A A^T, as both are s B^T G A^T, and B^T H_B = 0 at C = 0 save products.
    """

    def __init__(self, mode, A, B, grad_A, grad_B, block=None):
        self.mode, self.gradients, self.count = mode, (grad_A, grad_B), 0
        self.A, self.B = nn.Parameter(A.clone(), requires_grad=False), nn.Parameter(B.clone(), requires_grad=False)
        (m, r), n, zeros = B.shape, A.shape[1], functools.partial(torch.zeros, dtype=A.dtype)
        if mode == "efficient":
            self.optimizer = torch.optim.AdamW([self.A, self.B], lr=RATE, weight_decay=0, fused=True)
        if mode == "factored":
            self.old, self.momentum = (A.clone(), B.clone()), (zeros(r, n), zeros(m, r))
            self.squares = zeros(m), zeros(n)
        if mode == "full":
            parts = [slice(i, min(m, i + (block or m))) for i in range(0, m, block or m)]
            self.blocks = [(p, zeros(p.stop - p.start, n), zeros(p.stop - p.start, n), torch.zeros(())) for p in parts]
            self.scratch = zeros(block or m, n), zeros(block or m, n)

    def decompose(self):
        self.grams = torch.stack((self.A @ self.A.T, self.B.T @ self.B))
        self.values, self.vectors = torch.linalg.eigh(self.grams.double())
        self.inverses = (self.vectors / self.values[:, None]) @ self.vectors.mT / SCALE**2

    def directions(self, grad_A, grad_B, sylvester):
        A, B, narrow = self.A, self.B, self.A.dtype
        inverse_A, inverse_B = self.inverses
        K = inverse_B @ (grad_A @ A.T).double()
        L = SCALE**2 * K @ inverse_A
        step_A = inverse_B.to(narrow) @ grad_A
        if sylvester:
            (V, U), (right, left) = self.vectors, self.values
            C = U @ (U.T @ -K @ V / (left[:, None] + right)) @ V.T
            step_A.addmm_(C.to(narrow), A)
            L = L + C
        return step_A, torch.addmm(B @ L.to(narrow), grad_B, inverse_A.to(narrow), beta=-1)

    def full(self, H_A, H_B):
        """Moments of Gt = s (B H_A + H_B A); s B^T g and s g A^T."""
        left, right = SCALE * torch.cat((self.B, H_B), 1), torch.cat((H_A, self.A))
        grad_A, grad_B = torch.zeros_like(self.A), torch.empty_like(self.B)
        for part, mean, square, count in self.blocks:
            G, minus_g = (x[: part.stop - part.start] for x in self.scratch)
            torch.mm(left[part], right, out=G)
            minus_g.zero_()  # a step of AdamW from zero at learning rate 1 is -g
            count += 1
            torch._fused_adamw_([minus_g], [G], [mean], [square], [], [count], lr=1.0, beta1=BETAS[0], beta2=BETAS[1],
                                weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False)
            grad_A.addmm_(self.B[part].T, minus_g, alpha=-SCALE)
            torch.mm(minus_g, self.A.T, out=grad_B[part])
        return grad_A, grad_B.mul_(-SCALE)

    def factored(self, H_A, H_B):
        """The same with g = D_R m^ D_K, as in include/lora/optim/lora_pro.hpp."""
        A, B, (gram_A, gram_B), s2 = self.A, self.B, self.grams, SCALE**2
        (R, K), (old_A, old_B), (M_A, M_B) = self.squares, self.old, self.momentum
        dot = torch.linalg.vecdot
        rows = dot(B, torch.addmm(H_B @ (2 * A @ H_A.T), B, H_A @ H_A.T)) + dot(H_B, H_B @ gram_A)
        columns = dot(gram_B @ H_A, H_A, dim=0) + dot((H_B.T @ H_B) @ A, A, dim=0)
        torch._foreach_lerp_((R, K), (s2 * rows, s2 * columns), 1 - BETAS[1])

        carried = torch.addmm((B.T @ M_B) @ old_A, s2 * B.T @ old_B, M_A, beta=s2)
        M_A, M_B = self.momentum = self.directions(
            carried, torch.addmm(M_B @ (old_A @ A.T), old_B, s2 * M_A @ A.T, beta=s2), False)
        torch._foreach_lerp_((M_A, M_B), (H_A, H_B), 1 - BETAS[0])

        c1, c2 = 1 - BETAS[0] ** self.count, 1 - BETAS[1] ** self.count
        root = (R.sum() * c2).sqrt()
        D_R, D_K = (R / root + EPS).rsqrt(), (K / root + EPS).rsqrt()
        left, right = B * D_R[:, None], A * D_K
        grad_A = torch.addmm((left.T @ M_B) @ A, left.T @ B, M_A).mul_(s2 / c1 * D_K)
        grad_B = torch.addmm(M_B @ (A @ right.T), B, M_A @ right.T).mul_(s2 / c1 * D_R[:, None])
        torch._foreach_copy_(self.old, (A, B))
        return grad_A, grad_B

    def __call__(self):
        self.count += 1
        self.decompose()
        steps = self.directions(*self.gradients, self.mode in ("sgd", "efficient"))
        if self.mode == "efficient":
            self.A.grad, self.B.grad = steps
            return self.optimizer.step()
        if self.mode in ("full", "factored"):
            steps = self.directions(*getattr(self, self.mode)(*steps), True)
        torch._foreach_add_((self.A, self.B), steps, alpha=-RATE)


def pro_start(n, m, r, dtype=torch.float32):
    """Factors, and their gradients of one G."""
    G = torch.randn(m, n, dtype=dtype) / 100
    A, B = (FACTORS_SIZE * (2 * torch.rand(*shape, dtype=dtype) - 1) for shape in ((r, n), (m, r)))
    return A, B, SCALE * B.T @ G, SCALE * G @ A.T


def check_writings():
    """Both writings make the same step."""
    start = pro_start(60, 50, 4, torch.float64)
    for mode in ("sgd", "efficient", "full"):
        released, best = ReleasedPro(mode, *start), BestPro(mode, *start, block=16)
        released()
        best()
        for mine, other, before in zip((best.A, best.B), (released.A, released.B), start):
            assert torch.dist(mine, other) < 1e-4 * torch.dist(other, before), f"the writings of {mode} differ"
