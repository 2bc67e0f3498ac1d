// A slide, or a single image, in OpenSeadragon, and where on the screen a pixel of it lies.

/* global OpenSeadragon */

export class Stage {
  constructor(element) {
    this.viewer = OpenSeadragon({
      element,
      drawer: "canvas",
      showNavigationControl: false,
      tabIndex: -1,
      animationTime: 0.5,
      springStiffness: 8,
      maxZoomPixelRatio: 16,
      minZoomImageRatio: 0.6,
      visibilityRatio: 0.3,
      zoomPerScroll: 1.3,
      immediateRender: false,
      timeout: 120_000, // a query may have the machine to itself
      tileRetryMax: 3,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false },
    });
    // OpenSeadragon's own keys know nothing of outlines: keys.js has them all.
    this.viewer.innerTracker.keyHandler = null;
    this.viewer.innerTracker.keyDownHandler = null;
  }

  // Show `slide` (width, height, shown, origin), whose pixels OpenSeadragon's tile source has; what was there goes.
  async open(slide, tileSource) {
    const [left, top, width, height] = slide.shown;
    this.slide = slide;
    this.shown = new OpenSeadragon.Rect(left / slide.width, top / slide.width, width / slide.width, height / slide.width);
    this.viewer.world.removeAll();
    const clip = new OpenSeadragon.Rect(left, top, width, height);
    await new Promise((success, error) => this.viewer.addTiledImage({ tileSource, clip, success, error }));
    this.home(true);
  }

  get viewport() {
    return this.viewer.viewport;
  }

  // screen = slide · scale + (x, y), in pixels of the page; slide in the coordinates of the GeoJSON.
  view() {
    if (!this.viewer.world.getItemCount()) return null;
    const size = this.viewport.getContainerSize();
    const scale = (size.x * this.viewport.getZoom(true)) / this.slide.width;
    const corner = this.viewport.pixelFromPointNoRotate(new OpenSeadragon.Point(0, 0), true);
    const [dx, dy] = this.slide.origin;
    return { scale, x: corner.x + dx * scale, y: corner.y + dy * scale, width: size.x, height: size.y };
  }

  // What is visible of the slide: x, y, width, height in the coordinates of the GeoJSON.
  region() {
    const view = this.view();
    const [left, top, width, height] = this.slide.shown;
    const [dx, dy] = this.slide.origin;
    const clamp = (value, low, high) => Math.round(Math.min(Math.max(value, low), high));
    const x0 = clamp(-view.x / view.scale, left - dx, left - dx + width);
    const y0 = clamp(-view.y / view.scale, top - dy, top - dy + height);
    const x1 = clamp((view.width - view.x) / view.scale, left - dx, left - dx + width);
    const y1 = clamp((view.height - view.y) / view.scale, top - dy, top - dy + height);
    return [x0, y0, x1 - x0, y1 - y0];
  }

  // The address of the page tells the region, so that it is shown again when the page is loaded anew.
  remember() {
    history.replaceState(null, "", `#${this.region().join(",")}`);
  }

  recall() {
    const [x, y, width, height] = location.hash.slice(1).split(",").map(Number);
    if (width > 0 && height > 0) this.show([x, y, x + width, y + height], 1, 16);
  }

  home(immediately = false) {
    this.viewport.fitBounds(this.shown, immediately);
  }

  zoom(factor) {
    this.viewport.zoomBy(factor);
    this.viewport.applyConstraints();
  }

  // By parts of the screen.
  pan(x, y) {
    const bounds = this.viewport.getBounds();
    this.viewport.panBy(new OpenSeadragon.Point(x * bounds.width, y * bounds.height));
    this.viewport.applyConstraints();
  }

  // Whether the middle of a box is on the screen, once the slide stands still.
  isSeen([x0, y0, x1, y1]) {
    const [dx, dy] = this.slide.origin;
    const middle = new OpenSeadragon.Point((x0 + x1) / 2 + dx, (y0 + y1) / 2 + dy);
    return this.viewport.getBounds().containsPoint(middle.divide(this.slide.width));
  }

  // Bring a box into the middle, with some of what surrounds it; at most `zoom` screen pixels for one of the slide.
  show([x0, y0, x1, y1], around = 4, zoom = 2) {
    const [dx, dy] = this.slide.origin;
    const size = this.viewport.getContainerSize();
    const least = size.x / zoom;
    const width = Math.max((x1 - x0) * around, (y1 - y0) * around * (size.x / size.y), least);
    const height = width * (size.y / size.x);
    const [x, y] = [(x0 + x1) / 2 + dx - width / 2, (y0 + y1) / 2 + dy - height / 2];
    const per = 1 / this.slide.width;
    this.viewport.fitBounds(new OpenSeadragon.Rect(x * per, y * per, width * per, height * per));
  }
}
